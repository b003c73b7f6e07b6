"""The forwarder: an HTTP API for people, gauges for Prometheus, tunnels as cluster services.

Everything it shows is a function of the buckets; it holds no state of its own. The modules that
need FastAPI (`api`) and Celery (`schedule`) are imported by their path where they are used. Begin
reading at `collect.Forwarder.once`.
"""

from kit.forwarder.collect import Buckets, Forwarder, buckets_of, forwarder_for, run_passes
from kit.forwarder.gauges import RunSnapshot, exposition, run_samples
from kit.forwarder.tunnels import Tunnel, TunnelServices, live_tunnels
