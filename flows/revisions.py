"""Exported files of other revisions, fetched through DVC: from its cache, or else from the remote.

In: a repository and a git revision. Out: a file on disk.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from graft.errors import InputError

WORKSPACE = "workspace"  # what DVC calls the files as they lie in the folder


def fetch(root: Path, path: str, revision: str, folder: Path) -> Path:
    """Bring `path` of the repository `root` as of `revision` into `folder`; for `workspace` the file itself.

    Raises:
        InputError: no such revision, or the file is neither in the cache nor in a remote.
    """
    if revision == WORKSPACE:
        return root / path
    import dvc.api
    from dvc.exceptions import DvcException
    from dvc.scm import RevError

    target = folder / Path(path).name
    try:
        with dvc.api.open(path, repo=str(root), rev=revision, mode="rb") as source, target.open("wb") as out:
            shutil.copyfileobj(source, out)
    except RevError as error:
        raise InputError(f"git knows no revision {revision}; try a tag, a branch or HEAD~1 ({_line(error)})") from None
    except (DvcException, OSError) as error:
        raise InputError(
            f"{path} of {revision} is neither in DVC's cache nor in a remote; run `dvc fetch --rev {revision}` or "
            f"`graft run` on that commit ({_line(error)})"
        ) from None
    return target


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
