"""The object store: S3, Swift or a folder, and the credentials for it."""
