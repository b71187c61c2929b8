"""A worker's side: any virtual site, whenever a message for it comes.

What all sites need to be built is a :class:`Description`, the same for a whole run. What one site did so far is a
:class:`Kept`, which Flower carries from message to message. So an answer is a function of description, context and
message: a worker that dies takes nothing with it, and another one gives the same answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict

from fedward_client.app import client_app
from fedward_client.data import Records, SiteData
from fedward_common.canonical import canonical
from fedward_common.config import RunConfig
from fedward_common.errors import FedwardError, ModelError

if TYPE_CHECKING:
    from ray import ObjectRef

    from fedward_server.bundle import Bundle
    from fedward_simulations.prepare import Prepared
    from fedward_simulations.sites.population import Population

__all__ = ["ON_PURPOSE", "Description", "Kept", "SiteApp", "Workplace"]

ON_PURPOSE = "fedward: "  # begins a reason that may be shown
_RECORD = "fedward.site"  # in Flower's Context.state
_CLIENT_APP_RAISED = 2


@dataclass(frozen=True, kw_only=True)
class Description:
    """Everything of a run that never changes: what any site is built from. It holds the sites' keys and records.

    ``initial`` is the digest of the adapter that the run begins with: a worker's base must give the same.
    """

    config: RunConfig
    run_id: str
    initial: str
    operator: bytes
    keys: Mapping[str, bytes]
    records: Mapping[str, Records]

    @classmethod
    def of(
        cls,
        bundle: Bundle,
        data: Mapping[str, SiteData],
        *,
        operator: Ed25519PublicKey,
        keys: Mapping[str, Ed25519PrivateKey],
    ) -> Description:
        """Of a prepared run: its data by site, the operator's key, and the sites' own."""
        return cls(
            config=bundle.config,
            run_id=bundle.run_id,
            initial=bundle.initial.digest,
            operator=operator.public_bytes_raw(),
            keys={name: keys[name].private_bytes_raw() for name in data},
            records={name: held.records for name, held in data.items()},
        )


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What a site must not forget between two messages, and what it had to say about the last one.

    Args:
      ledger: every entry, one canonical JSON object each.
      run_id, plan_id, reply: the newest reply that was stored; empty where none was.
      notes: true reasons, for whoever simulates.
    """

    ledger: tuple[bytes, ...] = ()
    run_id: str = ""
    plan_id: str = ""
    reply: bytes = b""
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, state: RecordDict) -> Kept:
        """What a context holds."""
        record: Any = state.get(_RECORD)
        if record is None:
            return cls()
        return cls(
            ledger=tuple(record["ledger"]),
            run_id=record["run_id"],
            plan_id=record["plan_id"],
            reply=record["reply"],
            notes=tuple(record["notes"]),
        )

    @classmethod
    def from_entries(cls, rows: Sequence[Mapping[str, Any]]) -> Kept:
        """A site whose ledger was exported; its replies are gone."""
        return cls(ledger=tuple(canonical(row) for row in rows))

    def put(self, state: RecordDict) -> None:
        """Into a context."""
        state[_RECORD] = ConfigRecord({
            name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()
        })  # fmt: skip

    def entries(self, after: int = 0) -> list[dict[str, Any]]:
        """The ledger's entries after the first so many."""
        return [json.loads(entry) for entry in self.ledger[after:]]


@dataclass(kw_only=True)
class _Outbox:
    """The newest reply."""

    run_id: str
    plan_id: str
    reply: bytes

    def store(self, run_id: str, plan_id: str, reply: bytes) -> None:
        self.run_id, self.plan_id, self.reply = run_id, plan_id, reply

    def find(self, plan_id: str) -> bytes | None:
        return self.reply if self.plan_id == plan_id else None


@dataclass(kw_only=True, eq=False)
class _Here:
    """A site that this worker served before, and how it left it."""

    population: Population
    outbox: _Outbox
    kept: Kept


@dataclass(kw_only=True, eq=False)
class Workplace:
    """One worker's resident model and the sites that came by.

    Guarantees:
      - A site is as ``kept`` says, whoever served it last.
    """

    description: Description
    prepared: Prepared
    _here: dict[str, _Here] = field(default_factory=dict)
    _inputs: dict[str, Any] = field(default_factory=dict)
    _notes: list[str] = field(default_factory=list)

    @classmethod
    def open(cls, description: Description) -> Workplace:
        """Load the base model.

        Raises:
          ModelError: there is none here, or it is another than the coordinator's.
        """
        from fedward_simulations.device import chosen
        from fedward_simulations.prepare import prepare

        # Ray shows each worker its own GPUs alone, and none to one that was promised none
        prepared = prepare(description.config, run_id=description.run_id, device=chosen("auto"))
        if prepared.bundle.initial.digest != description.initial:
            raise ModelError(
                "a worker's base model is not the coordinator's", hint="give all machines the same model folder"
            )
        return cls(description=description, prepared=prepared)

    def answer(self, name: str, data: bytes, kept: Kept) -> tuple[bytes, Kept]:
        """One message to one site: its reply, and what it must not forget."""
        here = self._here.get(name)
        if here is None or here.kept != kept:
            here = self._here[name] = self._site(name, kept)
        self._notes.clear()
        reply = here.population.sites[name].answer(data)
        here.kept = self._after(name, here)
        return reply, here.kept

    def _after(self, name: str, here: _Here) -> Kept:
        known = here.kept.ledger  # entries are only ever added
        added = here.population.exports[name](len(known))
        return Kept(
            ledger=(*known, *(canonical(entry) for entry in added)),
            notes=tuple(self._notes),
            **vars(here.outbox),
        )

    def _site(self, name: str, kept: Kept) -> _Here:
        from fedward_client.training import SiteInputs
        from fedward_simulations.sites.population import Population, Watcher, site_data

        told = self.description
        data = site_data(told.records[name], config=told.config)
        inputs = self._inputs.setdefault(name, SiteInputs(self.prepared.base, data.records))
        outbox = _Outbox(run_id=kept.run_id, plan_id=kept.plan_id, reply=kept.reply)
        population = Population.build(
            self.prepared,
            {name: data},
            operator=Ed25519PublicKey.from_public_bytes(told.operator),
            watcher=Watcher(caching=lambda site, done, total: None, note=self._notes.append),
            inputs={name: inputs},
            entries={name: kept.entries()},
            keys={name: Ed25519PrivateKey.from_private_bytes(told.keys[name])},
            outbox=lambda site: outbox,
        )
        return _Here(population=population, outbox=outbox, kept=kept)


@dataclass(frozen=True, kw_only=True)
class SiteApp:
    """The ClientApp as Flower's workers call it: the same app around the site that the context names.

    What it is sent with each message must be small: ``described`` points into Ray's object store.
    """

    described: ObjectRef[Description]

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer, and write into the context what the site must not forget. Never raises."""
        try:
            return _served(_workplace(self.described), message, context)
        except FedwardError as error:  # its text carries no records
            reason = f"{ON_PURPOSE}{error}; {error.hint}"
        except Exception as error:
            reason = type(error).__name__
        return Message(Error(code=_CLIENT_APP_RAISED, reason=reason), reply_to=message)


@lru_cache(maxsize=1)  # Flower's workers have no place of their own to keep a model in
def _workplace(described: ObjectRef[Description]) -> Workplace:
    import ray

    return Workplace.open(ray.get(described))


def _served(workplace: Workplace, message: Message, context: Context) -> Message:
    app = client_app(lambda name: _Door(name, workplace, context.state))
    return app(message=message, context=context)


@dataclass(frozen=True)
class _Door:
    name: str
    workplace: Workplace
    state: RecordDict

    def answer(self, data: bytes) -> bytes:
        reply, kept = self.workplace.answer(self.name, data, Kept.of(self.state))
        kept.put(self.state)
        return reply
