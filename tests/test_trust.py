"""A bundle is loaded when a trusted key has signed the very bytes of its manifest, and else as the operator allows."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from batchscore.errors import BundleCorrupt, BundleUntrusted, UsageError
from batchscore.model.bundle import Bundle
from batchscore.model.registry import Registry
from batchscore.model.trust import Trust, write_keys
from tests.models import bundle


@cache
def trained() -> Bundle:
    """A small bundle."""
    return bundle()


@pytest.fixture
def ours(tmp_path: Path) -> tuple[str, str]:
    """A private key and its public one, in PEM."""
    return keys(tmp_path / "ours")


@pytest.fixture
def theirs(tmp_path: Path) -> tuple[str, str]:
    """Another pair."""
    return keys(tmp_path / "theirs")


def keys(folder: Path) -> tuple[str, str]:
    """A new pair in a folder."""
    private, public, _ = write_keys(folder)
    return private.read_text(), public.read_text()


def registered(folder: Path, trust: Trust) -> Path:
    """The folder of a version that was registered so."""
    registry = Registry.at(folder / "models", trust)
    registry.register(trained())
    return folder / "models/trips/1"


def loaded(folder: Path, trust: Trust) -> Bundle:
    """That version, as somebody with that trust loads it."""
    return Registry.at(folder / "models", trust).load("trips", 1)


class TestLoad:
    """Who may load what."""

    def test_signed_by_ours(self, tmp_path: Path, ours: tuple[str, str], theirs: tuple[str, str]) -> None:
        """What a trusted key has signed is loaded, and says by which; each of several keys will do."""
        registered(tmp_path, Trust.of(signing_key=ours[0]))
        trust = Trust.of(verify_keys=theirs[1] + ours[1])
        found = loaded(tmp_path, trust)

        assert list(trust.keys)[1] == found.signed_by
        assert list(Trust.of(verify_keys=ours[1]).keys) == [found.signed_by]

    def test_signed_by_another(self, tmp_path: Path, ours: tuple[str, str], theirs: tuple[str, str]) -> None:
        """A key that is not trusted is refused by its id with those that are, even where unsigned bundles are let in."""
        registered(tmp_path, Trust.of(signing_key=theirs[0]))
        here, there = (next(iter(Trust.of(verify_keys=pair[1]).keys)) for pair in (ours, theirs))

        for allow in (None, True):
            with pytest.raises(BundleUntrusted, match=rf"by key {there}, and the keys trusted here are {here}\."):
                loaded(tmp_path, Trust.of(verify_keys=ours[1], allow_unsigned=allow))

    def test_another_under_our_name(self, tmp_path: Path, ours: tuple[str, str], theirs: tuple[str, str]) -> None:
        """A signature by another key that claims to be of a trusted one is refused."""
        folder = registered(tmp_path, Trust.of(signing_key=theirs[0]))
        here = next(iter(Trust.of(verify_keys=ours[1]).keys))
        signature = json.loads((folder / "bundle.sig").read_text())
        (folder / "bundle.sig").write_text(json.dumps(signature | {"key": here}))

        with pytest.raises(BundleUntrusted, match=f"was changed after key {here} signed it"):
            loaded(tmp_path, Trust.of(verify_keys=ours[1], allow_unsigned=True))

    def test_unsigned(self, tmp_path: Path, ours: tuple[str, str]) -> None:
        """Without a signature it is refused as soon as there are keys, unless that is allowed."""
        registered(tmp_path, Trust())

        assert loaded(tmp_path, Trust.of()).signed_by is None
        with pytest.raises(BundleUntrusted, match=r"trips version 1 is not signed.*BATCHSCORE_ALLOW_UNSIGNED=true"):
            loaded(tmp_path, Trust.of(verify_keys=ours[1]))
        assert loaded(tmp_path, Trust.of(verify_keys=ours[1], allow_unsigned=True)).signed_by is None

    def test_signature_taken_away(self, tmp_path: Path, ours: tuple[str, str]) -> None:
        """A signature that somebody has removed makes an unsigned bundle, which is refused."""
        folder = registered(tmp_path, Trust.of(signing_key=ours[0]))
        (folder / "bundle.sig").unlink()

        with pytest.raises(BundleUntrusted, match="is not signed"):
            loaded(tmp_path, Trust.of(verify_keys=ours[1]))

    def test_strict_without_keys(self, tmp_path: Path, ours: tuple[str, str]) -> None:
        """Who allows no unsigned bundle and names no key trusts none, signed or not, and is told so."""
        registered(tmp_path, Trust.of(signing_key=ours[0]))

        with pytest.raises(BundleUntrusted, match=r"BATCHSCORE_VERIFY_KEYS is not set.*models keygen"):
            loaded(tmp_path, Trust.of(allow_unsigned=False))

    def test_signed_and_not_looked_at(self, tmp_path: Path, ours: tuple[str, str]) -> None:
        """Without keys a signed bundle is loaded as any other, and is not said to be signed."""
        registered(tmp_path, Trust.of(signing_key=ours[0]))

        assert loaded(tmp_path, Trust.of()).signed_by is None

    @pytest.mark.parametrize(
        "change",
        [
            lambda manifest: manifest.replace(b'"target": "slow"', b'"target": "slim"'),
            lambda manifest: manifest + b" ",
            lambda manifest: manifest.replace(b"\n", b""),
            lambda manifest: b"",
        ],
    )
    def test_changed_manifest(self, tmp_path: Path, ours: tuple[str, str], change: Callable[[bytes], bytes]) -> None:
        """The manifest's very bytes are signed: one more space, and the old signature is none of it."""
        folder = registered(tmp_path, Trust.of(signing_key=ours[0]))
        changed = change((folder / "bundle.json").read_bytes())
        assert changed != (folder / "bundle.json").read_bytes()
        (folder / "bundle.json").write_bytes(changed)

        with pytest.raises(BundleUntrusted, match="was changed after key"):
            loaded(tmp_path, Trust.of(verify_keys=ours[1]))

    def test_changed_file(self, tmp_path: Path, ours: tuple[str, str]) -> None:
        """A file that the signed manifest names is covered by its digest there."""
        folder = registered(tmp_path, Trust.of(signing_key=ours[0]))
        (folder / "features.py").write_text("raise SystemExit")

        with pytest.raises(BundleCorrupt, match=r"features\.py was changed"):
            loaded(tmp_path, Trust.of(verify_keys=ours[1]))

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"key": 1, "algorithm": "ed25519", "signature": "!"}', "\x00"])
    def test_no_signature(self, tmp_path: Path, ours: tuple[str, str], text: str) -> None:
        """A signature's file that holds none is refused, even where unsigned bundles are let in."""
        folder = registered(tmp_path, Trust.of(signing_key=ours[0]))
        (folder / "bundle.sig").write_text(text)

        with pytest.raises(BundleUntrusted, match=r"bundle\.sig is not a signature"):
            loaded(tmp_path, Trust.of(verify_keys=ours[1], allow_unsigned=True))

    def test_other_algorithm(self, tmp_path: Path, ours: tuple[str, str]) -> None:
        """A signature that names another algorithm is not tried as one of ours."""
        folder = registered(tmp_path, Trust.of(signing_key=ours[0]))
        signature = json.loads((folder / "bundle.sig").read_text())
        (folder / "bundle.sig").write_text(json.dumps(signature | {"algorithm": "none"}))

        with pytest.raises(BundleUntrusted, match="is signed with none"):
            loaded(tmp_path, Trust.of(verify_keys=ours[1]))

    def test_listed_too(self, tmp_path: Path, ours: tuple[str, str]) -> None:
        """What is not trusted is not promoted or shown either: its manifest is refused like the bundle."""
        registered(tmp_path, Trust())

        with pytest.raises(BundleUntrusted, match="is not signed"):
            Registry.at(tmp_path / "models", Trust.of(verify_keys=ours[1])).manifest("trips", 1)


class TestKeys:
    """`Trust.of` and `write_keys`."""

    def test_files(self, tmp_path: Path) -> None:
        """The private key is its owner's alone, and neither file is ever written over."""
        private, public, key = write_keys(tmp_path / "new/keys")
        before = private.read_bytes(), public.read_bytes()

        assert (0o600, [key]) == (private.stat().st_mode & 0o777, list(Trust.of(verify_keys=public.read_text()).keys))
        with pytest.raises(UsageError, match=r"File exists. No key was written"):
            write_keys(tmp_path / "new/keys")
        assert before == (private.read_bytes(), public.read_bytes())
        private.unlink()
        with pytest.raises(UsageError, match="File exists"):
            write_keys(tmp_path / "new/keys")
        assert not private.exists()

    def test_signer_is_not_trusted(self, ours: tuple[str, str], theirs: tuple[str, str]) -> None:
        """To sign with what would be refused here is refused before anything is trained."""
        with pytest.raises(UsageError, match=r"is not among verify_keys.*Add its public key"):
            Trust.of(verify_keys=theirs[1], signing_key=ours[0])

    def test_wrong_kind(self, ours: tuple[str, str]) -> None:
        """A key in the other's place, of another kind, or no key at all is refused, and never repeated."""
        rsa = generate_private_key(public_exponent=65537, key_size=2048)
        private = rsa.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        public = rsa.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        for text in (ours[0], "", "keys/verify_keys.pem", public, ours[1] + ours[0], ours[1].replace("A", "B", 1)):
            with pytest.raises(UsageError, match=r"^verify_keys: ") as caught:
                Trust.of(verify_keys=text)
            assert ours[0].splitlines()[1] not in str(caught.value)
        for text in (ours[1], "", "keys/signing_key.pem", private):
            with pytest.raises(UsageError, match=r"^signing_key: ") as caught:
                Trust.of(signing_key=text)
            assert private.splitlines()[1] not in str(caught.value)

    def test_repr(self, ours: tuple[str, str]) -> None:
        """A traceback that shows it shows no private key."""
        assert "signer" not in repr(Trust.of(signing_key=ours[0]))
