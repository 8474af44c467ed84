"""Whose bundles are loaded: Ed25519 signatures over a manifest's bytes, and the keys that an operator trusts.

The manifest names every other file with its digest, so that one signature over it is one over the bundle.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from batchscore.errors import BundleUntrusted, UsageError

__all__ = ["SIGNATURE", "Trust", "write_keys"]

SIGNATURE = "bundle.sig"
_ALGORITHM = "ed25519"
_PUBLIC_PEM = re.compile(r"-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Trust:
    """What an operator asks of a bundle before it is loaded, and what signs those that are written.

    Attributes:
        keys: The public keys that are trusted, by their id; without any, signatures are not looked at.
        allow_unsigned: Whether a bundle without a signature is loaded.
        modules: Modules and packages that a pipeline may name, beside those that `unpickle` knows.
        signer: The private key that signs what is registered.
    """

    keys: Mapping[str, Ed25519PublicKey] = field(default_factory=dict)
    allow_unsigned: bool = True
    modules: tuple[str, ...] = ()
    signer: Ed25519PrivateKey | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls,
        verify_keys: str | None = None,
        signing_key: str | None = None,
        allow_unsigned: bool | None = None,
        modules: str | None = None,
    ) -> Self:
        """The trust that the settings of these names ask for.

        Args:
            verify_keys: Public keys in PEM, one behind the other.
            signing_key: A private key in PEM.
            allow_unsigned: None stands for: as long as there are no `verify_keys`.
            modules: Names with commas between them.

        Raises:
            UsageError: A text is no key of its kind, or the keys that are trusted do not hold the one that signs.
        """
        keys = _public_keys(verify_keys) if verify_keys is not None else {}
        signer = _private_key(signing_key) if signing_key is not None else None
        if keys and signer is not None and (own := _id_of(signer.public_key())) not in keys:
            raise UsageError(
                f"signing_key is {own}, which is not among verify_keys ({', '.join(keys)}): what it signs would be "
                "refused. Add its public key to them."
            )
        allowed = tuple(name.strip() for name in (modules or "").split(",") if name.strip())
        return cls(keys, not keys if allow_unsigned is None else allow_unsigned, allowed, signer)

    @property
    def signs_as(self) -> str | None:
        """The id of the key that signs what is registered; None where none does."""
        return None if self.signer is None else _id_of(self.signer.public_key())

    def sign(self, manifest: bytes) -> dict[str, bytes]:
        """The signature's file for a manifest; nothing where no key signs."""
        if self.signer is None:
            return {}
        signature = base64.b64encode(self.signer.sign(manifest)).decode()
        told = {"key": self.signs_as, "algorithm": _ALGORITHM, "signature": signature}
        return {SIGNATURE: json.dumps(told, indent=2).encode() + b"\n"}

    def check(self, manifest: bytes, signature: bytes | None, where: str) -> str | None:
        """The id of the trusted key that signed the manifest; None where nobody asks for one.

        Raises:
            BundleUntrusted: It is not signed and must be, or it is signed by no trusted key, or changed since.
        """
        if signature is None or not self.keys:
            if self.allow_unsigned:
                return None
            raise BundleUntrusted(
                f"{where} is not signed. Train it again with BATCHSCORE_SIGNING_KEY, or let unsigned bundles in: "
                "BATCHSCORE_ALLOW_UNSIGNED=true."
                if self.keys
                else f"{where}: BATCHSCORE_ALLOW_UNSIGNED is false and BATCHSCORE_VERIFY_KEYS is not set, so that no "
                "bundle is trusted. Set the keys: batchscore models keygen makes some."
            )
        try:
            told = json.loads(signature)
            key, algorithm = str(told["key"]), told["algorithm"]
            signed = base64.b64decode(told["signature"], validate=True)
        except (ValueError, KeyError, TypeError, binascii.Error) as error:
            raise BundleUntrusted(
                f"{where}: {SIGNATURE} is not a signature. Do not use the bundle: retrain."
            ) from error
        if key not in self.keys or algorithm != _ALGORITHM:
            raise BundleUntrusted(
                f"{where} is signed with {algorithm} by key {key}, and the keys trusted here are "
                f"{', '.join(self.keys)}. If it is yours, add its public key to BATCHSCORE_VERIFY_KEYS; else do not "
                "use the bundle."
            )
        try:
            self.keys[key].verify(signed, manifest)
        except InvalidSignature:
            raise BundleUntrusted(
                f"{where} was changed after key {key} signed it, or that key never did. Do not use it: restore the "
                "registry from its backup, or retrain."
            ) from None
        return key


def write_keys(folder: Path) -> tuple[Path, Path, str]:
    """Make a pair of keys; the files must not be there yet.

    Returns:
        The file of the private key, which its owner alone may read, that of the public key, and their id.

    Raises:
        UsageError: A file is there, or cannot be written.
    """
    key = Ed25519PrivateKey.generate()
    private, public = folder / "signing_key.pem", folder / "verify_keys.pem"
    written = {
        private: (key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600),
        public: (key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), 0o644),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if public.exists():
            # Before the private one is written, which would be left alone.
            raise FileExistsError(17, "File exists", str(public))
        for path, (pem, mode) in written.items():
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                file.write(pem)
    except OSError as error:
        raise UsageError(
            f"{error.filename}: {error.strerror}. No key was written; give another folder with --to."
        ) from error
    return private, public, _id_of(key.public_key())


def _id_of(key: Ed25519PublicKey) -> str:
    return hashlib.sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()[:16]


def _public_keys(text: str) -> dict[str, Ed25519PublicKey]:
    keys = {}
    for pem in _PUBLIC_PEM.findall(text):
        try:
            key = load_pem_public_key(pem.encode())
        except (ValueError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, Ed25519PublicKey):
            raise UsageError("verify_keys: one of them is not a public key of Ed25519. Make one: models keygen.")
        keys[_id_of(key)] = key
    if not keys or _PUBLIC_PEM.sub("", text).strip():
        # It may be the private one, so it is not repeated.
        raise UsageError(
            "verify_keys: it must hold public keys in PEM and nothing else (-----BEGIN PUBLIC KEY-----). To give them "
            "as a file, set BATCHSCORE_VERIFY_KEYS_FILE."
        )
    return keys


def _private_key(text: str) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(text.encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # Without its cause, which might tell of the text.
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(
            "signing_key: it is not a private key of Ed25519 in PEM without a password. Make one: models keygen. To "
            "give it as a file, set BATCHSCORE_SIGNING_KEY_FILE."
        )
    return key
