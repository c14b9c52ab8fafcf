"""
The roster chain of a cluster as its renter follows it: verified from the first roster on, and remembered.

For each cluster the data folder keeps `rosters/CLUSTER_ID.json`: the roster key, serial and hash of the last roster,
and every member that was ever named. So a member that is added is seen, also one that has gone again; and a control
plane that shows another key, another past or less than before contradicts the file.
"""

import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal, Self

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from corral.core.ids import is_id
from corral.protocol.roster import GENESIS, Member, Roster, RosterRefused, accept, payload_hash, verify_chain
from corral.sdk import config
from corral.sdk.errors import AnswerMalformed, KeptRostersUnusable, RosterChainBroken
from corral.wire import api

# --- what a renter is shown ---------------------------------------------------------------------------------------


class Seen(BaseModel):
    """Base of what is shown of a chain."""

    model_config = ConfigDict(frozen=True)


class RelayMailbox(Seen):
    """A member's own port at a relay."""

    relay_id: str
    address: str = Field(description="the relay's")
    port: int


class MeshMember(Seen):
    """A member of the newest roster."""

    node_id: str
    name: str
    kind: Literal["node", "leaf"]
    address: str
    direct_key: str
    relayed_key: str
    endpoints: list[str]
    mailboxes: list[RelayMailbox]
    since_serial: int = Field(description="from this roster on it is named with this address and these keys")


class FormerMember(Seen):
    """A member that the newest roster does not name, or names with another address or other keys."""

    node_id: str
    name: str
    kind: Literal["node", "leaf"]
    address: str
    direct_key: str
    relayed_key: str
    first_serial: int
    last_serial: int


class Members(Seen):
    """Who is and was in the mesh of a cluster, by the whole of its chain."""

    cluster_id: str
    serial: int = Field(description="of the newest roster; 0 while there is none")
    roster_key: str
    members: list[MeshMember]
    former: list[FormerMember]
    rosters_verified: int = Field(description="the whole chain, from the first roster on")
    rosters_new: int = Field(description="of these, those that this call saw first")
    is_first_look: bool = Field(description="nothing of this chain was known on this machine before this call")
    known_since: datetime = Field(description="when its key was first seen on this machine")


# --- what is kept -------------------------------------------------------------------------------------------------


class Sighting(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A member with one address and one pair of keys, and the rosters, without a gap, that name it so."""

    node_id: str
    name: str
    kind: Literal["node", "leaf"]
    address: str
    direct_key: str
    relayed_key: str
    first_serial: int
    last_serial: int


class KeptChain(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is remembered of a chain."""

    cluster_id: str
    roster_key: str
    serial: Annotated[int, msgspec.Meta(ge=0)]
    hash: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
    """Of the payload with this serial; GENESIS for serial 0."""
    known_since: Annotated[datetime, msgspec.Meta(tz=True)]
    sightings: tuple[Sighting, ...]


def kept_path(cluster_id: str, environ: Mapping[str, str] = os.environ) -> Path:
    """Where the chain of a cluster is remembered."""
    return config.data_dir(environ) / "rosters" / f"{cluster_id}.json"


def load_kept(path: Path, cluster_id: str) -> KeptChain | None:
    """
    What is remembered of a cluster's chain; None if nothing is.

    Raises:
        KeptRostersUnusable: the file cannot be read, or is not what was written.
    """
    try:
        kept = msgspec.json.decode(path.read_bytes(), type=KeptChain)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _unusable(path, cluster_id, f"cannot be read: {error}") from error
    if kept.cluster_id != cluster_id:
        raise _unusable(path, cluster_id, f"is about cluster {kept.cluster_id}")
    return kept


def _unusable(path: Path, cluster_id: str, what: str) -> KeptRostersUnusable:
    return KeptRostersUnusable(
        f"what is kept of the rosters of cluster {cluster_id} in {path} {what}; it was not changed",
        hint=f"restore {path}, or move it away: the chain is then verified from its first roster, as if never seen",
        cluster_id=cluster_id,
        path=str(path),
    )


# --- following a chain --------------------------------------------------------------------------------------------


class ChainReader:
    """Verifies a chain page by page, from the last roster that is kept, or else from the first."""

    def __init__(self, cluster_id: str, path: Path, kept: KeptChain | None) -> None:
        """Goes on from what is kept; `of` finds it."""
        self._cluster_id, self._path, self._kept = cluster_id, path, kept
        self._roster_key = kept.roster_key if kept else None
        self._serial, self._hash = (kept.serial, kept.hash) if kept else (0, GENESIS)
        self._sightings = (
            {_identity(one): one for one in kept.sightings if one.last_serial == kept.serial} if kept else {}
        )
        self._former = [one for one in kept.sightings if one.last_serial != kept.serial] if kept else []
        self._newest: Roster | None = None

    @classmethod
    def of(cls, cluster_id: str, environ: Mapping[str, str] = os.environ) -> Self:
        """
        A reader that goes on from what is kept of the cluster's chain.

        Raises:
            AnswerMalformed: the id is none, so that it can name no file.
            KeptRostersUnusable: what is kept cannot be read.
        """
        if not is_id(cluster_id):
            raise AnswerMalformed("the control plane named a cluster by something that is no id; nothing was kept")
        path = kept_path(cluster_id, environ)
        return cls(cluster_id, path, load_kept(path, cluster_id))

    @property
    def after(self) -> int:
        """The serial after which the next page begins: first the last one known is looked at again."""
        return max(self._serial - 1, 0) if self._newest is None else self._serial

    @property
    def newest(self) -> Roster | None:
        """The newest roster that was verified; None while there is none."""
        return self._newest

    def take(self, page: api.RosterChain) -> bool:
        """
        Verifies the next page; False once the chain is at its end.

        Raises:
            RosterChainBroken: the page does not go on from what was seen before.
        """
        if page.cluster_id != self._cluster_id:
            raise self._broken(f"rosters of cluster {page.cluster_id} were sent for it")
        if page.roster_key != (self._roster_key or page.roster_key):
            raise self._broken(f"it is now said to be signed by {page.roster_key}, it was by {self._roster_key}")
        self._roster_key = page.roster_key
        try:
            rosters = self._again(page.rosters) if self._newest is None and self._serial else page.rosters
            verified = verify_chain(
                [(one.payload, one.signature) for one in rosters],
                cluster_id=self._cluster_id,
                roster_key=page.roster_key,
                last_serial=self._serial,
                last_hash=self._hash,
            )
        except RosterRefused as error:
            raise self._broken(error.message) from error
        for one, roster in zip(rosters, verified, strict=True):
            if one.serial != roster.serial:
                raise self._broken(f"roster {roster.serial} was sent as roster {one.serial}")
            self._follow(roster, payload_hash(one.payload))
        return bool(page.rosters)

    def keep(self, now: datetime) -> Members:
        """
        Remembers the end of the chain, and tells all that it showed.

        Raises:
            RosterChainBroken: another process was meanwhile shown another chain.
            KeptRostersUnusable: it cannot be written.
        """
        kept = self._kept
        following = KeptChain(
            cluster_id=self._cluster_id,
            roster_key=self._roster_key or "",
            serial=self._serial,
            hash=self._hash,
            known_since=kept.known_since if kept else now,
            sightings=(*self._former, *self._sightings.values()),
        )
        if following != kept:
            self._save(following)
        return Members(
            cluster_id=self._cluster_id,
            serial=self._serial,
            roster_key=following.roster_key,
            members=_members(self._newest, self._sightings) if self._newest else [],
            former=[FormerMember.model_validate(msgspec.structs.asdict(one)) for one in self._former],
            rosters_verified=self._serial,
            rosters_new=self._serial - (kept.serial if kept else 0),
            is_first_look=kept is None,
            known_since=following.known_since,
        )

    def _again(self, rosters: Sequence[api.ChainedRoster]) -> Sequence[api.ChainedRoster]:
        """Finds the last roster known at the head of the first page; returns those behind it."""
        if not rosters:
            raise self._broken(f"it now ends before roster {self._serial}, which was there before")
        known = rosters[0]
        found = payload_hash(known.payload)
        if found != self._hash:
            raise self._broken(
                f"its past was rewritten: where roster {self._serial} had the hash {self._hash[:16]}…, "
                f"one with the hash {found[:16]}… is shown"
            )
        if known.serial != self._serial:
            raise self._broken(f"roster {self._serial} was sent as roster {known.serial}")
        self._newest = accept(
            known.payload,
            known.signature,
            cluster_id=self._cluster_id,
            roster_key=self._roster_key or "",
            last_serial=self._serial,
            last_hash=self._hash,
        )
        return rosters[1:]

    def _follow(self, roster: Roster, own_hash: str) -> None:
        before, self._sightings = self._sightings, {}
        for member in roster.members:
            known = before.pop(_identity(member), None)
            first = known.first_serial if known else roster.serial
            self._sightings[_identity(member)] = Sighting(
                node_id=member.node_id,
                name=member.name,
                kind=member.kind,
                address=member.address,
                direct_key=member.direct_key,
                relayed_key=member.relayed_key,
                first_serial=first,
                last_serial=roster.serial,
            )
        self._former += before.values()
        self._newest, self._serial, self._hash = roster, roster.serial, own_hash

    def _save(self, following: KeptChain) -> None:
        # Another process may have gone further on the same chain since we looked.
        present = load_kept(self._path, self._cluster_id)
        if present is not None:
            if present.roster_key != following.roster_key:
                raise self._broken(
                    f"it is signed by {following.roster_key}, another process was shown {present.roster_key}"
                )
            if present.serial == following.serial and present.hash != following.hash:
                raise self._broken(f"another process was shown another roster {present.serial}")
            if present.serial >= following.serial:
                return
        try:
            make_folder(self._path.parent)
            config.write_private(self._path, msgspec.json.format(msgspec.json.encode(following)).decode() + "\n")
        except OSError as error:
            raise _unusable(self._path, self._cluster_id, f"cannot be written: {error}") from error

    def _broken(self, what: str) -> RosterChainBroken:
        kept = (
            f"what is kept of it in {self._path} was not changed"
            if self._kept
            else "nothing of it was known here before, and nothing was kept"
        )
        evidence = f", and move {self._path} away only if the reason is good" if self._kept else ""
        return RosterChainBroken(
            f"the roster chain of cluster {self._cluster_id} is broken: {what}; {kept}",
            hint=f"trust none of its members: `corral down {self._cluster_id}` ends it; ask the operator why{evidence}",
            cluster_id=self._cluster_id,
            known_serial=self._kept.serial if self._kept else 0,
            path=str(self._path),
            reason=what,
        )


def _identity(one: Member | Sighting) -> tuple[str, ...]:
    """What makes a member this member: under other keys or another address it is somebody else."""
    return (one.node_id, one.name, one.kind, one.address, one.direct_key, one.relayed_key)


def _members(roster: Roster, sightings: Mapping[tuple[str, ...], Sighting]) -> list[MeshMember]:
    relays = {relay.relay_id: relay.address for relay in roster.relays}
    return [
        MeshMember(
            node_id=member.node_id,
            name=member.name,
            kind=member.kind,
            address=member.address,
            direct_key=member.direct_key,
            relayed_key=member.relayed_key,
            endpoints=[*member.endpoints, *member.lan],
            mailboxes=[
                RelayMailbox(relay_id=box.relay_id, address=relays[box.relay_id], port=box.port)
                for box in member.mailboxes
            ],
            since_serial=sightings[_identity(member)].first_serial,
        )
        for member in roster.members
    ]


def make_folder(folder: Path) -> None:
    """Makes the folder, 0700, within the data folder, which `corral serve` may share."""
    data = folder.parent
    # As root the control plane lets PostgreSQL's own user pass through it.
    config.make_folder(data, mode=0o711 if os.geteuid() == 0 else 0o700)
    config.make_folder(folder, mode=0o700)
