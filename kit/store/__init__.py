"""Object stores: one bucket of S3, Swift or a folder, with seven methods and checked contents.

What is read has the SHA-256 of what was put; an object appears whole or not at all; a bucket of
another project is never read or written; a request is repeated while that may help. The login at
Keystone and the list of credentials are here too. Begin with `objects`, then `folder`.
"""

from kit.store.errors import RetryPolicy
from kit.store.folder import FolderStore
from kit.store.keystone import (
    Credential,
    Keystone,
    as_row,
    certificates,
    describe_expiry,
    keystone_for,
    list_credentials,
)
from kit.store.objects import ObjectInfo, ObjectStore
from kit.store.opening import bucket_name, open_store, progress_bar, user_of
from kit.store.static_keys import Ec2Key
