"""Errors of the platform: what an operator's machine or a malformed request can cause."""

from pathlib import Path

from corral.core.errors import CorralError


class PlatformError(CorralError):
    """Base of the platform's errors."""

    code = "platform_error"


class SettingInvalid(PlatformError):
    """A setting from the environment or the command line cannot be used."""

    code = "setting_invalid"


class DataFolderInUse(PlatformError):
    """Another control plane runs on this data folder."""

    code = "data_folder_in_use"

    def __init__(self, folder: Path) -> None:
        super().__init__(
            f"another control plane runs on the data folder {folder}; nothing was started",
            hint="stop it first, or choose another folder with --data-dir",
            folder=str(folder),
        )


class PostgresUnavailable(PlatformError):
    """The embedded PostgreSQL could not be prepared or started."""

    code = "postgres_unavailable"


class DatabaseUnavailable(PlatformError, ConnectionError):
    """
    PostgreSQL does not answer, or the connection broke: whether a running change was made is not known.

    A `ConnectionError` like those of other services, so that a loop that survives an absent one survives this.
    """

    code = "database_unavailable"

    def __init__(self) -> None:
        super().__init__("the database does not answer; try again in a moment", retry_after_s=2)


class ServerStopping(PlatformError):
    """The control plane is being stopped; the request was not carried out, or its wait was cut short."""

    code = "server_stopping"

    def __init__(self) -> None:
        super().__init__("the control plane is stopping; try again in a moment", retry_after_s=2)


class ListenRefused(PlatformError):
    """An address to listen on is malformed, in use, or not this machine's."""

    code = "listen_refused"


class CertificateUnusable(PlatformError):
    """A given certificate or key cannot be used, or the own one is damaged."""

    code = "certificate_unusable"


class FileMalformed(PlatformError):
    """A file that the operator named cannot be used."""

    code = "file_malformed"


class MasterKeyMalformed(PlatformError):
    """The file of the master key does not hold exactly 32 bytes, or others may read it."""

    code = "master_key_malformed"


class BodyTooLarge(PlatformError):
    """The body of a request is larger than its route takes."""

    code = "body_too_large"

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(
            f"the request's body is larger than {limit_bytes} bytes; nothing of it was used", limit_bytes=limit_bytes
        )


class TextUnstorable(PlatformError):
    """A text contains the character NUL, which PostgreSQL cannot keep."""

    code = "text_unstorable"

    def __init__(self) -> None:
        super().__init__("a text contains the character NUL, which cannot be stored; nothing was done")


class BodyMalformed(PlatformError):
    """The body of a request is not what its route takes."""

    code = "body_malformed"
