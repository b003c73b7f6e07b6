"""Lets Python processes that a test starts see the test's own site profiles."""

import os
from pathlib import Path

if "KIT_TEST_SITES" in os.environ:
    from kit.base import settings

    settings.SITES = Path(os.environ["KIT_TEST_SITES"])
