"""The place of the app: its release's manifest, its folder, the import path, and the paths that persist."""

import errno
import json
import os
import shutil
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from booty_runner.settings import Refusal, Settings

# Releases with a smaller `contract` have no folder `tree`.
CONTRACT = 3


@dataclass(frozen=True)
class Place:
    """Where the app lies, and what its commit says about it.

    Attributes:
        release: the release's directory, the parent of sys.prefix; None outside of a release.
        folder: the app's folder.
        import_paths: folders beside it on the import path.
        layer: the directory of the app's locked dependencies, if there is a release.
        state_paths: paths in the app's folder that persist; a folder's path ends with a slash.
        health_path: the path of the health request, "" if the commit names none.
        health_host: its Host header, likewise.
    """

    folder: Path
    release: Path | None = None
    import_paths: tuple[Path, ...] = ()
    layer: Path | None = None
    state_paths: tuple[str, ...] = ()
    health_path: str = ""
    health_host: str = ""

    @classmethod
    def read(cls, release: Path | None = None) -> "Place":
        """Read the manifest of the release that this Python belongs to, by default the parent of sys.prefix.

        Raises:
            Refusal: the manifest can't be read.
        """
        release = release or Path(sys.prefix).parent
        file = release / "release.json"
        try:
            manifest: dict[str, Any] = json.loads(file.read_text())
        except FileNotFoundError:
            return cls(Path.cwd())
        except (OSError, ValueError) as error:
            raise Refusal(f"{file} can't be read: {error}") from None
        if manifest.get("contract", 1) < CONTRACT:
            return cls(Path.cwd())
        folder, health = release / "tree" / manifest["path"], manifest.get("health", {})
        return cls(
            folder=Path(os.path.normpath(folder)),
            release=release,
            import_paths=tuple(Path(os.path.normpath(folder / path)) for path in manifest.get("import_paths", ())),
            layer=release.parents[1] / "layers" / manifest["layer"],
            state_paths=tuple(manifest.get("state_paths", ())),
            health_path=health.get("path", ""),
            health_host=health.get("host", ""),
        )

    def enter(self, settings: Settings) -> None:
        """Make the app's folder the working directory and the first one on the import path, and prepare its state.

        Raises:
            Refusal: the folder does not exist, or a path that persists can't be made.
        """
        try:
            os.chdir(self.folder)
        except OSError as error:
            raise Refusal(f"the app's folder {self.folder} can't be entered: {error.strerror}") from None
        config = [settings.booty_config_dir] if settings.booty_config_dir else []
        # Before the standard library, as with gunicorn, uvicorn and flask.
        sys.path[:0] = map(str, [*config, self.folder, *self.import_paths])
        if settings.state_directory:
            self.prepare(settings.state_directory)

    def prepare(self, directory: Path) -> None:
        """Create the state paths that are missing.

        Args:
            directory: the service's StateDirectory.

        Raises:
            Refusal: a path can't be made.
        """
        for path in self.state_paths:
            try:
                _prepare(directory / path, (self.release or directory) / "seed" / path, path.endswith("/"))
            except OSError as error:
                raise Refusal(f"the state path {path} can't be made in {directory / path}: {error.strerror}") from None


def _prepare(place: Path, seed: Path, is_folder: bool) -> None:
    """Copy the seed to a place where nothing is yet, or make a missing folder."""
    if os.path.lexists(place):
        if is_folder and place.is_file():
            raise NotADirectoryError(errno.ENOTDIR, "a file is there")
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    if not seed.exists():
        if is_folder:
            place.mkdir(exist_ok=True)
        return
    # Copy beside it and rename, so that an interrupted copy is never used.
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=".booty-") as directory:
        copy = Path(directory, "copy")
        if seed.is_dir():
            shutil.copytree(seed, copy, symlinks=True)
        else:
            shutil.copy(seed, copy)
        for path in (copy, *copy.rglob("*")):
            if not path.is_symlink():
                path.chmod(path.stat().st_mode | (0o700 if path.is_dir() else 0o600))  # a release is read-only
        with suppress(FileExistsError):  # another process was first
            copy.rename(place)


# A release command needs the state as well, and runs before the release is served for the first time.
if __name__ == "__main__":
    Place.read().prepare(Path(os.environ["STATE_DIRECTORY"]))
