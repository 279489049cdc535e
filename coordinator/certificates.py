"""The coordinator's own certificates: an authority that hospitals pin by their invitation, and the server's, renewed before it ends.

    keys/ca.pem ca.key    for ten years          keys/tls.pem tls.key    for a year

An operator who has certificates from elsewhere puts them in place of tls.pem and tls.key and removes ca.key: then nothing is renewed here.
ca.pem beside them is what hospitals pin; without it they trust their system's authorities.
"""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedrounds.coordinator import files
from fedrounds.core.errors import StateError

AUTHORITY, SERVER = timedelta(days=3650), timedelta(days=365)
EARLY = timedelta(days=60)  # so long before its end a certificate is renewed
SKEW = timedelta(days=1)  # a hospital's clock may be late


def renew(keys: Path, host: str, now: datetime | None = None) -> bool:
    """Have an authority and a server's certificate for this host that is not about to end; whether anything was written.

    Raises StateError where the operator's own certificate is missing or over, or a file is none.
    """
    now = now or datetime.now(UTC)
    if not (keys / "ca.key").exists():
        if (keys / "tls.pem").exists():
            _check_theirs(keys / "tls.pem", now)
            return False
        _authority(keys, now)
    if (keys / "tls.pem").exists() and (keys / "tls.key").exists():
        found = _certificate(keys / "tls.pem")
        if found.not_valid_after_utc - EARLY > now and _names(host) == _named(found):
            return False
    _server(keys, host, now)
    return True


def ends(keys: Path) -> datetime:
    """When the server's certificate ends."""
    return _certificate(keys / "tls.pem").not_valid_after_utc


def _authority(keys: Path, now: datetime) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Fedrounds coordinator")])
    made = (
        _builder(name, name, key.public_key(), now, AUTHORITY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    files.write(keys / "ca.pem", _pem(made))
    files.write(keys / "ca.key", _private(key), files.SECRET)  # last: it says that both are there


def _server(keys: Path, host: str, now: datetime) -> None:
    authority = _certificate(keys / "ca.pem")
    signer = serialization.load_pem_private_key(files.secret(keys / "ca.key").encode(), password=None)
    if not isinstance(signer, ec.EllipticCurvePrivateKey) or signer.public_key() != authority.public_key():
        raise StateError(
            f"expected the key of {keys / 'ca.pem'} in {keys / 'ca.key'}, found another: restore both from one copy"
        )
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host[:64])])
    lasts = min(SERVER, authority.not_valid_after_utc - now)
    made = (
        _builder(name, authority.subject, key.public_key(), now, lasts)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(sorted(_names(host), key=str)), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA256())
    )
    files.write(keys / "tls.key", _private(key), files.SECRET)
    files.write(keys / "tls.pem", _pem(made))


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, now: datetime, lasts: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + lasts)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _usage(digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(digital_signature, False, False, False, False, key_cert_sign, crl_sign, False, False)


def _names(host: str) -> set[x509.GeneralName]:
    """By what the server is called: its host, and loopback, so that the coordinator itself may look whether it answers."""
    try:
        own: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        own = x509.DNSName(host)
    loopback = [x509.IPAddress(ipaddress.ip_address(address)) for address in ("127.0.0.1", "::1")]
    return {own, x509.DNSName("localhost"), *loopback}


def _named(certificate: x509.Certificate) -> set[x509.GeneralName]:
    try:
        return set(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        return set()


def _check_theirs(file: Path, now: datetime) -> None:
    over = _certificate(file).not_valid_after_utc
    if over <= now:
        raise StateError(
            f"expected a certificate that still holds in {file}, found one that ended {over:%Y-%m-%d}: put the new one there"
        )


def _certificate(file: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(file.read_bytes())
    except OSError as error:
        raise StateError(f"expected a certificate in {file}, found: {error.strerror}: restore it from a copy") from None
    except ValueError:
        raise StateError(
            f"expected a certificate (PEM) in {file}, found another text: restore it from a copy"
        ) from None


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _private(key: ec.EllipticCurvePrivateKey) -> str:
    how = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(*how).decode()
