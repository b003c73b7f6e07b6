"""The platform's manifests, its cloud VM, and port-forwards to it.

Every function says what it changes; nothing outside `env/platform` and the VM is touched.
`manifests` has the upstream source, the passwords and the build, `images` the images of ours,
`apply` the stages in which a cluster gets the manifests; `vm` has the plan and the setup;
`port_forward` the ssh connection, and `forwards` which ports it brings.
"""

from kit.deploy import forwards, manifests, port_forward, vm

__all__ = ["forwards", "manifests", "port_forward", "vm"]
