import os
from pathlib import Path

from bugsink.settings.default import *  # noqa: F403

SECRET_KEY = os.environ["SECRET_KEY"]
DATABASES["default"]["NAME"] = Path.home() / "db.sqlite3"  # noqa: F405
DATABASES["snappea"]["NAME"] = Path.home() / "snappea.sqlite3"  # noqa: F405
BUGSINK = {"BASE_URL": "http://errors.example.com", "INGEST_STORE_BASE_DIR": str(Path.home() / "ingestion")}
ALLOWED_HOSTS = ["errors.example.com"]
