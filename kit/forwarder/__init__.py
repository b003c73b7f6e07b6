"""The forwarder: HTTP API, gauges, schedule and published tunnels."""
