from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from fedward_client.door.credentials import COURIER, TRAINER, Half, Pair, Published, publish
from fedward_client.door.place import Place
from fedward_common.errors import DoorClosed, DoorRefused, OutputError, PrivacyError
from support.trainer import short_folder


@pytest.fixture
def place() -> Iterator[Place]:
    with short_folder() as folder:
        yield Place(folder)


def test_each_start_makes_other_keys_and_each_side_pins_the_other() -> None:
    first, second = Pair.make(), Pair.make()
    assert first.trainer.peer == first.courier.certificate and first.courier.peer == first.trainer.certificate
    assert len({first.trainer.key, first.courier.key, second.trainer.key, second.courier.key}) == 4
    for half, name in ((first.trainer, TRAINER), (first.courier, COURIER)):
        own = x509.load_pem_x509_certificate(half.certificate)
        assert own.subject == own.issuer
        names = own.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == [name]


def test_a_half_shows_no_key() -> None:
    half = Pair.make().trainer
    assert "PRIVATE" not in repr(half) and half.load() is half


def test_one_descriptor_serves_every_life_of_a_child() -> None:
    half = Pair.make().courier
    descriptor = half.to_fd()
    assert not os.get_inheritable(descriptor)
    for _ in range(2):
        assert Half.from_fd(os.dup(descriptor)) == half
    assert Half.from_fd(descriptor) == half
    with pytest.raises(OSError):
        os.fstat(descriptor)


def test_a_pipe_serves_as_well() -> None:
    half = Pair.make().courier
    reading, writing = os.pipe()
    os.write(writing, half.to_bytes())
    os.close(writing)
    assert Half.from_fd(reading) == half


def test_what_is_no_half_is_refused() -> None:
    half = Pair.make().courier
    for data in (b"", b"nonsense", half.key, half.key + half.peer, half.to_bytes() + b"x", half.peer * 3):
        with pytest.raises(DoorRefused):
            Half.from_bytes(data)
    with pytest.raises(DoorRefused):
        Half.from_fd(10_000)


def test_a_published_half_is_replaced_at_each_start(place: Place) -> None:
    with pytest.raises(DoorClosed, match="there is no"):
        Published(place).load()
    for _ in range(2):
        half = Pair.make().courier
        publish(half, place)
        assert Published(place).load() == half
        found = place.half.stat()
        assert stat.S_IMODE(found.st_mode) == 0o640 and found.st_gid == place.folder.stat().st_gid
        assert [path.name for path in place.folder.iterdir()] == [place.half.name]


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o642])
def test_a_published_half_that_others_may_touch_is_not_used(place: Place, mode: int) -> None:
    publish(Pair.make().courier, place)
    place.half.chmod(mode)
    with pytest.raises(DoorRefused):
        Published(place).load()


def test_a_link_is_not_followed(place: Place) -> None:
    publish(Pair.make().courier, place)
    place.half.rename(place.folder / "real")
    place.half.symlink_to(place.folder / "real")
    with pytest.raises(DoorRefused):
        Published(place).load()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_folder_that_does_not_pass_its_group_on_is_refused(place: Place) -> None:
    os.chown(place.folder, -1, 12345)
    with pytest.raises(PrivacyError, match="another group"):
        publish(Pair.make().courier, place)
    place.folder.chmod(0o2750)
    publish(Pair.make().courier, place)
    assert place.half.stat().st_gid == 12345


def test_a_folder_that_is_gone_is_an_error_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        publish(Pair.make().courier, Place(tmp_path / "gone"))
