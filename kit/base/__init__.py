"""Errors, files, secrets, hosts and tables of text: what every other room may use.

Nothing here knows a run, a store or Slurm. Every error is a `KitError` of three sentences; a
file is written whole or not at all; a host is this machine or one behind ssh, with the same
methods. Begin with `errors`, then `host`. Settings of a profile are in `kit.base.settings`,
which is imported by its path because it loads pydantic.
"""

from kit.base.errors import (
    BucketTaken,
    Busy,
    ClockSkewed,
    ClosedBeforeLogin,
    CommandFailed,
    CredentialExpired,
    CredentialRefused,
    DataError,
    HostKeyRefused,
    KitError,
    NoSuchBucket,
    NoSuchObject,
    ObjectDamaged,
    ObjectTooLarge,
    ProfileMissing,
    ProfileUnfilled,
    StoreUnavailable,
    Unreachable,
    UsageError,
    ca_bundle_step,
    last_error,
)
from kit.base.files import (
    PACKAGE,
    ROOT,
    SCHEMA,
    Json,
    Timeline,
    copy_whole,
    dumps,
    file_lock,
    git,
    git_state,
    host_facts,
    parse_json,
    process_began,
    read_json,
    sha256_of,
    temporary_folder,
    time_file,
    time_record,
    versions,
    whole_file,
    work_dir,
    write_bytes,
    write_json,
    write_text,
)
from kit.base.history import append_history, read_history
from kit.base.host import Completed, Host, LocalHost, Stdin, as_completed, run_process
from kit.base.secret import (
    LOGIN_NAMES,
    Login,
    Secret,
    SecretReadable,
    SecretTracked,
    parse_env,
    read_env,
    read_login,
    read_private,
    refuse_tracked,
)
from kit.base.secret_scan import (
    SHAPES,
    SecretFound,
    find_secrets,
    hide_secrets,
    known_secrets,
    refuse_secrets,
)
from kit.base.ssh import SSHHost, certificate_end, private_folder, site_host, ssh_options, vm_host
from kit.base.text import WIDTH, Rows, narrowed, to_csv, to_latex, to_markdown, to_text
