"""Which store a profile opens, and what its buckets are called."""

import dataclasses
import subprocess
import sys

import pytest

from kit.base import UsageError
from kit.base.settings import Store, load
from kit.store import FolderStore, bucket_name, open_store, progress_bar
from kit.store.s3 import S3Store
from kit.store.swift import SwiftStore


def test_the_profile_decides_which_store_is_opened(tmp_path):
    env = tmp_path / ".env"
    names = ("CSC_USERNAME", "CSC_PASSWORD", "CSC_USER_DOMAIN_NAME", "CSC_PROJECT_NAME")
    env.write_text("".join(f"{name}=Anna.B\n" for name in names))
    env.chmod(0o600)
    loaded = load("sandbox", {"KIT_ENV_FILE": str(env)})
    for kind, cls in (("s3", S3Store), ("swift", SwiftStore), ("directory", FolderStore)):
        section = Store(kind, str(tmp_path), auth_url="http://127.0.0.1:9/v3")
        store = open_store(dataclasses.replace(loaded, store=section), "abc")
        assert isinstance(store, cls)
    with pytest.raises(UsageError, match="kind = 'ftp'"):
        open_store(dataclasses.replace(loaded, store=Store("ftp", "x")), "abc")
    with pytest.raises(UsageError, match=r"no section \[store\]"):
        open_store(dataclasses.replace(loaded, store=None), "abc")
    assert bucket_name(loaded, "pipeline") == "integration-pipeline-s0-c0-u1-anna-b"
    assert bucket_name(loaded, "forwarder") == "integration-forwarder-s0-c0-u1"


def test_only_long_transfers_show_a_bar(capsys):
    with progress_bar("short", 1000) as report:
        assert report is None
    with progress_bar("long", 100 << 20) as report:
        report(100 << 20)
    assert "long: 100%" in capsys.readouterr().err


def test_the_door_imports_no_heavy_library():
    heavy = ("boto3", "keystoneauth1", "swiftclient", "tqdm", "pydantic")
    code = f"import sys, kit.store; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
