"""The planner: laws over any host and any document, and the cases by name."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from corral.agent.bodies import HostFacts, container_name
from corral.agent.observe import Found, observe
from corral.agent.plan import ORPHAN_GRACE, Action, Build, End, Target, agrees, plan, target_of
from corral.agent.runtime import (
    LABEL_DEVICES,
    LABEL_HOST,
    LABEL_NODE,
    LABEL_PART,
    LABEL_REVISION,
    LABEL_SPEC,
    LABEL_STOP_AFTER,
    Container,
    State,
)
from corral.testing.ids import numbered_id
from corral.wire.agent import Revision

from .builders import HOST, NOW, a_desired, a_device, a_leaf, a_node, facts

STATES: tuple[State, ...] = ("created", "running", "exited")
FACTS = facts([a_device(f"cpu-{number}") for number in range(3)])


def found(
    target: Target,
    node_id: str,
    *,
    state: State = "running",
    revision: Revision | None = None,
    digest: str | None = None,
) -> list[Container]:
    """The containers of a wanted node, as they are once it was built."""
    wanted = target.wanted[node_id]
    revision = revision or target.revision
    labels = {
        LABEL_HOST: HOST,
        LABEL_NODE: node_id,
        LABEL_REVISION: f"{revision.epoch}.{revision.number}",
        LABEL_SPEC: wanted.digest if digest is None else digest,
        LABEL_DEVICES: ",".join(wanted.devices),
    }
    if wanted.stop_after is not None:
        labels[LABEL_STOP_AFTER] = wanted.stop_after.isoformat()
    return [
        Container(
            container_id=f"id-{node_id}-{part}",
            name=container_name(node_id, part),
            state=state,
            labels={**labels, LABEL_PART: part},
            exit_code=0 if state == "exited" else None,
        )
        for part in wanted.parts
    ]


def applied(target: Target, containers: list[Container], actions: tuple[Action, ...]) -> list[Container]:
    """The host after the actions."""
    for action in actions:
        match action:
            case End():
                containers = [one for one in containers if one.name not in action.containers]
            case Build():
                built = {one.name: one for one in found(target, action.node_id)}
                containers = [built.get(one.name, one) for one in containers]
                containers += [one for name, one in built.items() if name not in {other.name for other in containers}]
    return containers


@st.composite
def hosts(draw: st.DrawFn) -> tuple[Target | None, list[Container], dict[str, datetime]]:
    """A document, and a host that earlier, later and foreign-epoch documents have left in any state."""
    numbers = st.integers(1, 5)
    ends = st.sampled_from([NOW - timedelta(minutes=1), NOW + timedelta(hours=1)])

    def document(epoch: int, number: int) -> Target:
        chosen = draw(st.lists(numbers, unique=True, max_size=4))
        nodes = [
            a_node(one, devices=(draw(st.sampled_from(["cpu-0", "cpu-1", "cpu-2", "cpu-9"])),), stop_after=draw(ends))
            for one in chosen
        ]
        return target_of(a_desired(number, *nodes, epoch=epoch), FACTS)

    target = document(2, 5) if draw(st.booleans()) else None
    containers: dict[str, Container] = {}
    for _ in range(draw(st.integers(0, 3))):
        before = document(draw(st.integers(1, 2)), draw(st.integers(1, 8)))
        for node_id in before.wanted:
            state = draw(st.sampled_from(STATES))
            for one in found(before, node_id, state=state):
                if draw(st.integers(0, 4)):
                    containers[one.name] = one
    if draw(st.booleans()):
        containers["odd"] = Container(container_id="odd", name="odd", state="running", labels={LABEL_HOST: HOST})
    since = draw(st.sampled_from([NOW, NOW - ORPHAN_GRACE]))
    orphans = {node_id: since for node_id in observe(containers.values())}
    return target, list(containers.values()), orphans


RENEWABLE = st.sets(st.sampled_from([a_node(number).node_id for number in range(1, 6)])).map(frozenset)


@given(hosts(), RENEWABLE)
def test_applying_a_plan_empties_the_next_one(
    host: tuple[Target | None, list[Container], dict[str, datetime]], renewable: frozenset[str]
) -> None:
    """Once applied there is nothing left to do, whatever was found and may be mended."""
    target, containers, since = host
    first = plan(target, observe(containers), now=NOW, orphans_since=since, renewable=renewable)
    after = applied(target, containers, first.actions) if target else applied_ends(containers, first.actions)
    assert plan(target, observe(after), now=NOW, orphans_since=since, renewable=renewable).actions == ()


@given(hosts(), RENEWABLE)
def test_what_runs_of_a_wanted_node_is_ended_only_with_its_network(
    host: tuple[Target | None, list[Container], dict[str, datetime]], renewable: frozenset[str]
) -> None:
    """A node is mended around what still runs, unless the network that it runs in is gone."""
    target, containers, since = host
    found_before = observe(containers)
    for action in plan(target, found_before, now=NOW, orphans_since=since, renewable=renewable).actions:
        if isinstance(action, End) and action.reason == "ended":
            parts = found_before[action.node_id].parts
            assert action.node_id in renewable
            running = {one.name for one in parts.values() if one.state == "running"} & set(action.containers)
            assert not running or parts["pause"].state == "exited"
            assert action.is_whole == (len(action.containers) == len(parts))


@given(hosts())
def test_no_device_is_held_by_two_nodes(host: tuple[Target | None, list[Container], dict[str, datetime]]) -> None:
    """A node is built only on devices that no other node holds once the actions before it are done."""
    target, containers, since = host
    if target is None:
        return
    actions = plan(target, observe(containers), now=NOW, orphans_since=since).actions
    built = {action.node_id for action in actions if isinstance(action, Build)}
    after = observe(applied(target, containers, actions))
    for node_id in built:
        others = [one.devices for other, one in after.items() if other != node_id]
        assert all(after[node_id].devices.isdisjoint(devices) for devices in others)


@given(hosts())
def test_only_containers_that_were_found_are_ended(
    host: tuple[Target | None, list[Container], dict[str, datetime]],
) -> None:
    """The planner is shown what carries our host's label, and names nothing else."""
    target, containers, since = host
    actions = plan(target, observe(containers), now=NOW, orphans_since=since).actions
    ended = {name for action in actions if isinstance(action, End) for name in action.containers}
    assert ended <= {one.name for one in containers}


def applied_ends(containers: list[Container], actions: tuple[Action, ...]) -> list[Container]:
    """The host after Ends alone: all that is planned while nothing is known."""
    ended = {name for action in actions if isinstance(action, End) for name in action.containers}
    return [one for one in containers if one.name not in ended]


def of(containers: list[Container]) -> Mapping[str, Found]:
    """As observed."""
    return observe(containers)


def only(target: Target | None, containers: list[Container], *, now: datetime = NOW) -> tuple[Action, ...]:
    """The actions of a plan without orphans of long standing."""
    return plan(target, of(containers), now=now, orphans_since={}).actions


NODE = a_node(1).node_id


def test_a_node_that_is_missing_is_built() -> None:
    """The simplest case."""
    assert only(target_of(a_desired(1, a_node(1)), FACTS), []) == (Build(node_id=NODE),)


def test_a_dropped_node_is_ended_at_once() -> None:
    """A newer document of the same epoch that does not name it has dropped it: work first, network last."""
    before = target_of(a_desired(1, a_node(1)), FACTS)
    (end,) = only(target_of(a_desired(2), FACTS), found(before, NODE))
    assert isinstance(end, End)
    assert end.reason == "dropped"
    assert [name.rpartition("-")[2] for name in end.containers] == ["work", "mesh", "pause"]


def test_a_node_from_a_newer_document_is_left_alone() -> None:
    """Ours is the stale one."""
    newer = target_of(a_desired(9, a_node(1)), FACTS)
    assert only(target_of(a_desired(8), FACTS), found(newer, NODE)) == ()


def test_a_node_of_a_forgotten_epoch_is_an_orphan_for_its_grace() -> None:
    """A restored database may have lost it: it is told, and ended only when nobody claims it."""
    before, restored = target_of(a_desired(9, a_node(1)), FACTS), target_of(a_desired(1, epoch=2), FACTS)
    seen = plan(restored, of(found(before, NODE)), now=NOW, orphans_since={})
    assert (seen.actions, seen.orphans) == ((), {NODE})
    late = plan(restored, of(found(before, NODE)), now=NOW + ORPHAN_GRACE, orphans_since={NODE: NOW})
    assert [action.reason for action in late.actions if isinstance(action, End)] == ["orphan"]


def test_a_node_that_a_restored_database_names_is_adopted() -> None:
    """It stays as it is, and is no orphan."""
    before, restored = target_of(a_desired(9, a_node(1)), FACTS), target_of(a_desired(1, a_node(1), epoch=2), FACTS)
    seen = plan(restored, of(found(before, NODE)), now=NOW, orphans_since={})
    assert (seen.actions, seen.orphans) == ((), frozenset())


def test_a_node_ends_at_its_stop_after_even_when_nothing_else_is_known() -> None:
    """The labels alone are enough."""
    before = target_of(a_desired(1, a_node(1)), FACTS)
    containers = found(before, NODE)
    assert only(None, containers, now=NOW + timedelta(minutes=59)) == ()
    (end,) = only(None, containers, now=NOW + timedelta(hours=1))
    assert isinstance(end, End)
    assert end.reason == "stop_after"


def test_an_extension_counts_before_the_label() -> None:
    """The label says when the node was to end when it was started; the document knows better."""
    before = target_of(a_desired(1, a_node(1)), FACTS)
    extended = target_of(a_desired(2, a_node(1, stop_after=NOW + timedelta(hours=5))), FACTS)
    assert only(extended, found(before, NODE), now=NOW + timedelta(hours=2)) == ()


def test_a_changed_spec_replaces_the_node() -> None:
    """End, then build, in one plan."""
    before = target_of(a_desired(1, a_node(1)), FACTS)
    after = target_of(a_desired(2, a_node(1, devices=("cpu-1",))), FACTS)
    end, build = only(after, found(before, NODE))
    assert (end, build) == (End(node_id=NODE, containers=end.containers, reason="replaced"), Build(node_id=NODE))  # type: ignore[union-attr]


def test_a_node_that_ended_by_itself_is_left_to_be_seen() -> None:
    """The control plane decides about a replacement; we neither restart nor remove what is wanted."""
    target = target_of(a_desired(1, a_node(1)), FACTS)
    containers = found(target, NODE)
    containers[2] = replace(containers[2], state="exited", exit_code=1)
    assert only(target, containers) == ()


def test_what_ended_of_a_renewable_node_is_made_anew() -> None:
    """Alone, where its network stays; with everything that joined the network, where that has ended."""
    target = target_of(a_desired(1, a_node(1)), FACTS)
    pause, mesh, work = (replace(one, exit_code=None) for one in found(target, NODE))

    def ends_of(*containers: Container) -> tuple[str, ...]:
        seen = plan(target, of(list(containers)), now=NOW, orphans_since={}, renewable={NODE})
        end, build = seen.actions
        assert isinstance(end, End)
        assert build == Build(node_id=NODE)
        return end.containers

    assert ends_of(pause, mesh, replace(work, state="exited", exit_code=1)) == (work.name,)
    assert ends_of(pause, replace(mesh, state="exited", exit_code=1), work) == (mesh.name,)
    assert ends_of(replace(pause, state="exited", exit_code=1), mesh, work) == (work.name, mesh.name, pause.name)


def test_a_half_built_node_is_completed() -> None:
    """After a crash between create and start."""
    target = target_of(a_desired(1, a_node(1)), FACTS)
    containers = found(target, NODE)
    assert only(target, containers[:2]) == (Build(node_id=NODE),)
    assert only(target, [*containers[:2], replace(containers[2], state="created")]) == (Build(node_id=NODE),)


def test_a_device_of_a_leaving_node_is_waited_for() -> None:
    """No fault: it will be free in a moment."""
    before = target_of(a_desired(1, a_node(1)), FACTS)
    after = target_of(a_desired(2, a_node(2)), FACTS)
    _, build = only(after, found(before, NODE))
    assert build == Build(node_id=numbered_id("no", 2), after=frozenset({NODE}))


def test_a_device_of_another_node_is_a_fault() -> None:
    """And an unknown one is, too; nothing is built."""
    target = target_of(a_desired(1, a_node(1), a_node(2), a_node(3, devices=("cpu-7",))), FACTS)
    seen = plan(target, of(found(target, NODE)), now=NOW, orphans_since={})
    assert seen.actions == ()
    assert {node_id: fault.code for node_id, fault in seen.faults.items()} == {
        numbered_id("no", 2): "device_busy",
        numbered_id("no", 3): "device_unknown",
    }


def test_a_gateway_keeps_its_front_and_restarts_it() -> None:
    """The front belongs to no cluster: it is ours alone to keep."""
    gateway: HostFacts = facts(gateway=True)
    target = target_of(a_desired(1, leaves=(a_leaf(),)), gateway)
    assert {action.node_id for action in only(target, [])} == {HOST, a_leaf().node_id}
    ended = found(target, HOST, state="exited")
    actions = plan(target, of(ended), now=NOW, orphans_since={}).actions
    assert [type(action) for action in actions if action.node_id == HOST] == [End, Build]


def test_applied_means_that_nothing_else_is_here() -> None:
    """A device may be lent again only when its old node is gone, its changes in flight included."""
    before = target_of(a_desired(1, a_node(1)), FACTS)
    after = target_of(a_desired(2), FACTS)
    assert agrees(before, of(found(before, NODE)), busy=frozenset())
    assert not agrees(after, of(found(before, NODE)), busy=frozenset())
    assert not agrees(after, {}, busy=frozenset({NODE}))
    assert agrees(after, {}, busy=frozenset())
