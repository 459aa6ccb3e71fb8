"""The base of every error that is the user's to mend, and which of the machine's are.

It lives on the lowest floor so that every package may derive from it. Stages catch it, print its
one paragraph and exit 2; any other exception is a defect of ours and keeps its traceback.
"""

import errno
import re

_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "files may not be larger here",
}
_DENIED = {
    errno.EROFS: "its file system is read-only",
    errno.EACCES: "permission is denied",
    errno.EPERM: "permission is denied",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EISDIR: "it is a folder, and a file is needed",
    errno.EEXIST: "it is a file, and a folder is needed",
    errno.ENAMETOOLONG: "the path is too long",
    errno.ELOOP: "its links go round in a circle",
    errno.EIO: "the disk reports an error",
    errno.EMFILE: "too many files are open",
}
_FOREIGN = re.compile(r"(?:os error |errno[ =]*|\[Errno )(\d+)")  # of h5py, safetensors, pyarrow
_NO_MEMORY = ("can't allocate memory", "out of memory", "cannot allocate memory")


class UserError(ValueError):
    """A mistake in a configuration, a file or a command.

    The message says what was expected, what came, where, and what to do about it. It is one line:
    what cannot be printed, of a name with a line break or a control character, is escaped.
    """

    def __str__(self) -> str:
        """Return the message."""
        told = super().__str__()
        return "".join(
            c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in told
        )


class FileError(UserError):
    """A file that cannot be written, for want of room or permission."""


def as_user_error(error: BaseException) -> UserError | None:
    """An exception as the user's to mend: a full disk, a closed folder, too little memory.

    Returns:
        None for a defect of ours.
    """
    if isinstance(error, UserError):
        return error
    if isinstance(error, OSError) and error.errno in {**_FULL, **_DENIED}:
        why = {**_FULL, **_DENIED}[error.errno]
        return FileError(f"{error.filename or 'a file'} cannot be used: {why}.")
    if isinstance(error, MemoryError) or any(word in str(error).lower() for word in _NO_MEMORY):
        return UserError(
            "memory is used up; take smaller batches, fewer streams or regions, or fewer workers "
            f"({_first_line(error)})."
        )
    return None


def no_room(error: BaseException) -> str | None:
    """Why a file could not be written, where it is for want of room; libraries have many words."""
    number = error.errno if isinstance(error, OSError) else None
    if number not in _FULL and (found := _FOREIGN.search(str(error))):
        number = int(found[1])
    if number in _FULL:
        return _FULL[number]
    if isinstance(error, OSError) and "requested and" in str(error):  # numpy's words
        return _FULL[errno.ENOSPC]
    before = error.__cause__ or error.__context__
    return no_room(before) if before is not None else None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
