"""Platform manifests, the cloud VM, and port forwarding."""
