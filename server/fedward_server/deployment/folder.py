"""An operator's folder: what lies where, who may take part, and who is at work. It is declarative: commands write it.

    DIR/            0700
      server.toml   where the gateway listens and what it limits
      keys/         authority, server certificate, plan key, local secret
      sites/        NAME.pub  one enrolment each;  revoked/NAME-TIME.pub  former ones
      runs/         NAME/
      state/        what the processes know: superlink/  processes.json  sites.json  logs/
      lock          held by `fedward-server start`

The running server reads the folder again and again and makes Flower agree with it, so every command here works while
it is down. Nothing here talks to Flower. Nothing here imports numpy before it must: its threads would keep ``start``
from leaving the machine's network.

Example:
    >>> import tempfile
    >>> root = Path(tempfile.mkdtemp()) / "operator"
    >>> folder = OperatorFolder.create(root, name="lung", names=("fed.example.org",))
    >>> folder.load_server().address, folder.sites(), folder.holder()
    ('fed.example.org:8443', {}, None)
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import os
import re
import shutil
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from fedward_common.errors import BadSignature, InputError, OutputError
from fedward_common.files import check_private, make_private_folder, read_json, rewrite, sync_folder, write_new
from fedward_server.deployment.server_file import DEFAULT_HOST, DEFAULT_PORT, ServerFile, read_server_text, template
from fedward_server.gateway.versions import read_versions

if TYPE_CHECKING:
    from fedward_common.enrolment import Enrolment
    from fedward_server.deployment.authority import Authority
    from fedward_server.deployment.runs import RunFolder

__all__ = ["Consent", "OperatorFolder"]

SERVER_FILE, KEYS, SITES, REVOKED, RUNS, STATE, LOCK = (
    "server.toml",
    "keys",
    "sites",
    "revoked",
    "runs",
    "state",
    "lock",
)
PUB = ".pub"
DRAFT = re.compile(r"\.(server\.toml\.|keys-)[0-9a-f]{16}")  # what an `init` that was killed left


class Consent(StrEnum):
    """What an operator must say in so many words when a site is enrolled."""

    REPLACE = "replace"  # other keys under a name that is enrolled: the former ones are revoked
    AGAIN = "again"  # a signing key that was revoked before, with a new node key


@dataclass(frozen=True)
class OperatorFolder:
    """The folder of one operator."""

    root: Path

    @classmethod
    def create(
        cls, root: Path, *, name: str, names: Sequence[str], host: str = DEFAULT_HOST, port: int = DEFAULT_PORT
    ) -> Self:
        """Make whatever is missing: the folder, a commented server file, the keys. What exists is left as it is.

        Guarantees:
          - After a crash at any instant it can be called again; what the crash left half-made is removed.

        Raises:
          OutputError: the folder holds something else, or cannot be written.
          ConfigError: a name, host or port is wrong.
          PrivacyError: the folder is open to other accounts.
        """
        from fedward_server.deployment.authority import create_authority

        folder = cls(root)
        text = template(name, names=tuple(names), host=host, port=port)
        folder._claim()
        if not folder.server_file.exists():
            write_new(folder.server_file, text.encode())
        for path in (folder.sites_folder, folder.revoked, folder.runs, folder.state, folder.logs):
            make_private_folder(path)
        if not folder.keys.exists():
            server = folder.load_server()
            create_authority(folder.keys, name=server.name, names=server.gateway.names)
        return folder

    @classmethod
    def open(cls, root: Path) -> Self:
        """A folder that ``create`` made.

        Raises:
          OutputError: it is none.
          PrivacyError: it is open to other accounts.
        """
        folder = cls(root)
        if not folder.server_file.is_file():
            raise OutputError(
                f"there is no operator's folder in {root}", hint="give its folder, or make one: fedward-server init DIR"
            )
        folder._check_private()
        return folder

    # ---- what lies where -----------------------------------------------------------
    @property
    def server_file(self) -> Path:
        """Where the gateway listens and what it limits."""
        return self.root / SERVER_FILE

    @property
    def keys(self) -> Path:
        """The folder of all secrets."""
        return self.root / KEYS

    @property
    def sites_folder(self) -> Path:
        """The folder of enrolments."""
        return self.root / SITES

    @property
    def revoked(self) -> Path:
        """The folder of former enrolments."""
        return self.sites_folder / REVOKED

    @property
    def runs(self) -> Path:
        """The folder of all runs."""
        return self.root / RUNS

    @property
    def state(self) -> Path:
        """What the processes know; needs no backup, but for Flower's database."""
        return self.root / STATE

    @property
    def superlink(self) -> Path:
        """Flower's database and home."""
        return self.state / "superlink"

    @property
    def processes_file(self) -> Path:
        """What the supervisor says of its children."""
        return self.state / "processes.json"

    @property
    def sites_file(self) -> Path:
        """What the desk knows of the sites: connected, last seen, node id."""
        return self.state / "sites.json"

    @property
    def desk_beat(self) -> Path:
        """The desk's sign of life: an empty file that it touches in every turn."""
        return self.state / "desk.beat"

    @property
    def gateway_ready(self) -> Path:
        """The gateway's sign that it takes connections: an empty file that it touches when it begins to."""
        return self.state / "gateway.ready"

    @property
    def server_copy(self) -> Path:
        """The server file as it was when ``start`` began: what its processes read, however often they begin anew."""
        return self.state / SERVER_FILE

    @property
    def logs(self) -> Path:
        """The folder of the processes' logs."""
        return self.state / "logs"

    @property
    def lock_file(self) -> Path:
        """Held by ``start``."""
        return self.root / LOCK

    def load_server(self) -> ServerFile:
        """The server file, checked.

        Raises:
          ConfigError: a key or value of it is wrong or missing.
        """
        return ServerFile.load(self.server_file)

    def keep_server(self) -> ServerFile:
        """The server file, checked, and kept as ``server_copy``. Whoever calls it holds the folder.

        Guarantees:
          - What is returned is what the copy says; a wrong server file leaves the copy before as it was.

        Raises:
          ConfigError: a key or value of it is wrong or missing.
          OutputError: the copy cannot be written.
        """
        text = read_server_text(self.server_file)
        server = ServerFile.from_toml(text)
        make_private_folder(self.state)
        rewrite(self.server_copy, text.encode())
        return server

    def authority(self) -> Authority:
        """The keys, checked.

        Raises:
          PrivacyError: one is missing, damaged, or open to other accounts.
        """
        from fedward_server.deployment.authority import Authority

        return Authority.open(self.keys)

    # ---- who is at work ------------------------------------------------------------
    def hold(self) -> contextlib.AbstractContextManager[Any]:
        """Be the only ``start`` of this folder.

        Raises:
          InputError: another process is; its number is in the message.
        """
        from fedward_common.machine.holding import hold

        return hold(self.lock_file)

    def holder(self) -> int | None:
        """The process that runs ``start`` at this moment."""
        from fedward_common.machine.holding import holder

        return holder(self.lock_file)

    # ---- sites ---------------------------------------------------------------------
    def sites(self) -> dict[str, Enrolment]:
        """Every enrolled site by the operator's name for it. A file that cannot be read enrols nobody."""
        found = ((path.stem, _read(path)) for path in _pubs(self.sites_folder))
        return {name: enrolment for name, enrolment in found if enrolment is not None}

    def damaged_sites(self) -> tuple[str, ...]:
        """The names of enrolments that cannot be read."""
        return tuple(path.stem for path in _pubs(self.sites_folder) if _read(path) is None)

    def site_states(self) -> dict[str, dict[str, Any]]:
        """What the desk last wrote of each site; empty before it ever ran."""
        rows = read_json(self.sites_file)
        rows = rows.get("sites", rows) if isinstance(rows, dict) else {}
        rows = rows if isinstance(rows, dict) else {}
        said = read_versions(self.state)
        return {
            str(name): {**row, "version": said.get(str(name))} for name, row in rows.items() if isinstance(row, dict)
        }

    def enrol(self, text: str, *, name: str | None = None, consents: Collection[Consent] = ()) -> Enrolment:
        """Let a site take part under a name. The same keys under the same name again change nothing.

        Args:
          text: the enrolment that the site sent.
          name: the operator's name of the site; None: the one that the site gave itself.
          consents: what the operator said in so many words.

        Guarantees:
          - No two enrolled sites share a node key or a signing key.
          - A node key that was revoked never comes back: Flower takes none back either.
          - A signing key that was revoked comes back only with ``Consent.AGAIN``.
          - A replaced enrolment is kept among the revoked ones, and at no instant is the name without one.

        Raises:
          InputError: no enrolment, a name that is none or taken, or a key that is enrolled or was revoked.
          BadSignature: the enrolment is not signed by its own signing key.
        """
        from fedward_common.enrolment import Enrolment

        enrolment = Enrolment.from_text(text)
        chosen = _checked_name(name or enrolment.name)
        with self._alone():
            present = self.sites().get(chosen)
            if present is not None and _same(present, enrolment):
                return enrolment
            self.check_enrolment(enrolment, name=chosen, consents=consents)
            path = self._enrolment_file(chosen)
            if path.exists():
                write_new(self._revoked_file(chosen), path.read_bytes())
                rewrite(path, enrolment.to_text().encode())
            else:
                write_new(path, enrolment.to_text().encode())
        return enrolment

    def check_enrolment(self, enrolment: Enrolment, *, name: str, consents: Collection[Consent] = ()) -> None:
        """Whether ``enrol`` would take it; nothing is changed.

        Raises:
          InputError: a name that is none or taken, or a key that is enrolled or was revoked.
        """
        _checked_name(name)
        self._check_keys(name, enrolment, consents)
        if self._enrolment_file(name).exists() and Consent.REPLACE not in consents:
            raise InputError(
                f"a site {name} is enrolled already, with other keys",
                hint="give another --name, or --replace if this site has new keys",
            )

    def revoke(self, name: str) -> None:
        """Let a site take part no longer. The running server lets go of it within seconds.

        Raises:
          InputError: no site of this name is enrolled.
          OutputError: the folder cannot be written.
        """
        _checked_name(name)
        with self._alone():
            try:
                os.rename(self._enrolment_file(name), self._revoked_file(name))
                sync_folder(self.revoked)
                sync_folder(self.sites_folder)
            except FileNotFoundError:
                known = ", ".join(sorted(self.sites())) or "none yet"
                raise InputError(f"no site {name} is enrolled", hint=f"enrolled sites: {known}") from None
            except OSError as error:
                raise OutputError(
                    f"cannot write {self.sites_folder}: {error.strerror}", hint="check the disk and who owns it"
                ) from None

    # ---- runs ----------------------------------------------------------------------
    def list_runs(self) -> list[RunFolder]:
        """Every run, the oldest first."""
        from fedward_server.deployment.runs import list_runs

        return list_runs(self.runs)

    def find_run(self, text: str) -> RunFolder:
        """The run with this name, or the only one whose name or run id begins like this.

        Raises:
          InputError: there is none, or there are several.
        """
        from fedward_server.deployment.runs import find_run

        return find_run(self.runs, text)

    def create_run(self, bundle_folder: Path, *, name: str | None = None) -> RunFolder:
        """Copy a bundle into a new run that is wanted running.

        Raises:
          InputError: no name for a run, or a run of this name or run id is there.
          OutputError: the bundle is broken, or the disk is full.
        """
        from fedward_server.deployment.runs import create_run

        with self._alone():
            return create_run(self.runs, bundle_folder, name=name)

    # ---- inside --------------------------------------------------------------------
    def _claim(self) -> None:
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = list(self.root.iterdir())
            drafts = [path for path in found if DRAFT.fullmatch(path.name)]
            if drafts == found:
                self.root.chmod(0o700)
            elif not self.server_file.is_file():
                raise OutputError(
                    f"{self.root} holds something that is no operator's folder",
                    hint="give a new folder: fedward-server init DIR",
                )
            for path in drafts:
                _remove(path)
        except OSError as error:
            raise OutputError(f"cannot make {self.root}: {error.strerror}", hint="give another folder") from None
        self._check_private()

    def _check_private(self) -> None:
        for path in (self.root, self.keys, self.runs, self.state):
            check_private(path)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Be the only command that writes here: held for an instant, so others wait."""
        try:
            descriptor = os.open(self.sites_folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise OutputError(f"cannot read {self.sites_folder}: {error.strerror}", hint="run `init` again") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _enrolment_file(self, name: str) -> Path:
        return self.sites_folder / f"{name}{PUB}"

    def _revoked_file(self, name: str) -> Path:
        make_private_folder(self.revoked)
        stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        return self.revoked / f"{name}-{stamp}{PUB}"

    def _check_keys(self, name: str, enrolment: Enrolment, consents: Collection[Consent]) -> None:
        sites = self.sites()
        for other, known in sites.items():
            if other != name and (shared := _shared(known, enrolment)):
                raise InputError(
                    f"the {shared} key of this enrolment is that of site {other}: two sites with one key",
                    hint="each site makes its own keys with `fedward-client init`: ask it to send its own file",
                )
        mine = sites.get(name)
        former = [known for known in map(_read, _pubs(self.revoked)) if known is not None]
        back = {_shared(known, enrolment, but=mine) for known in former}
        if "node" in back:
            raise InputError(
                "the node key of this enrolment was revoked before, and Flower takes no such key back",
                hint="ask the site to make a new node key, and to send its file again",
            )
        if "signing" in back and Consent.AGAIN not in consents:
            raise InputError(
                "the signing key of this enrolment was revoked before",
                hint="ask the site for a new one (`fedward-client rotate-keys`), or say --again to take this one back",
            )


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _checked_name(name: str) -> str:
    """Return ``name`` if a site can be called so.

    Raises:
      InputError: otherwise.
    """
    from fedward_common.enrolment import NAME

    if not NAME.fullmatch(name):
        raise InputError(
            f"{name!r} is no name for a site", hint="1 to 64 letters, digits, '.', '_' or '-', a letter or digit first"
        )
    return name


def _pubs(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob(f"*{PUB}") if not path.name.startswith(".") and path.is_file())


def _read(path: Path) -> Enrolment | None:
    from fedward_common.enrolment import Enrolment

    try:
        return Enrolment.from_text(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, InputError, BadSignature):
        return None


def _same(one: Enrolment, other: Enrolment) -> bool:
    return one.node_fingerprint == other.node_fingerprint and one.signing_fingerprint == other.signing_fingerprint


def _shared(one: Enrolment, other: Enrolment, *, but: Enrolment | None = None) -> str:
    """Which key both have: 'node', 'signing' or ''. A key that ``but`` has as well does not count."""
    if one.node_fingerprint == other.node_fingerprint != (but.node_fingerprint if but else None):
        return "node"
    if one.signing_fingerprint == other.signing_fingerprint != (but.signing_fingerprint if but else None):
        return "signing"
    return ""
