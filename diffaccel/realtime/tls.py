"""The certificate of an https server, checked before anything else starts."""

import ssl
from pathlib import Path

from diffaccel.media.errors import MediaError


def check_certificate(certificate: Path, key: Path) -> None:
    """Raise `MediaError` unless these are PEM files that belong together, and the key has no password."""

    def ask() -> str:
        raise MediaError(f"the key {key} has a password: decrypt it, as with openssl pkey -in {key} -out plain.pem")

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=ask)
    except ssl.SSLError as error:
        reason = error.reason.lower().replace("_", " ") if error.reason else "one of them is no PEM file"
        raise MediaError(f"{certificate} and {key} are not a certificate and its key: {reason}") from error
    except OSError as error:
        raise MediaError(f"cannot read {certificate} or {key}: {error.strerror or error}") from error
