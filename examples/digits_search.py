"""
A hyper-parameter search on real data: which support vector machine reads handwritten digits best?

Runs anywhere Ray runs; on a Corral cluster, with nothing installed on your side but `corral`:

    corral job submit NAME --working-dir examples -- python digits_search.py

The data are the 1,797 scanned digits (8 x 8 pixels) that come with scikit-learn, from the UCI repository's "Optical
Recognition of Handwritten Digits". Every combination is scored by 3-fold cross-validation as one Ray task.
"""

import collections
import itertools
import json
import socket
import time

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

GAMMAS = [1e-4, 3e-4, 1e-3, 3e-3]
PENALTIES = [0.3, 1.0, 3.0, 10.0, 30.0, 100.0]


@ray.remote(num_cpus=1, scheduling_strategy="SPREAD")
def score(gamma: float, penalty: float) -> tuple[float, float, float, str]:
    """Mean accuracy of one combination, and the host that found it."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import cross_val_score
    from sklearn.svm import SVC

    pixels, digits = load_digits(return_X_y=True)
    accuracy = cross_val_score(SVC(gamma=gamma, C=penalty), pixels, digits, cv=3).mean()
    return gamma, penalty, float(accuracy), socket.gethostname()


@ray.remote(num_cpus=1)
def warm_up() -> None:
    """Loads what the search needs."""
    import sklearn.datasets
    import sklearn.model_selection
    import sklearn.svm  # noqa: F401


def only_on(node_id: str) -> NodeAffinitySchedulingStrategy:
    """The strategy that runs a task on this node and no other."""
    return NodeAffinitySchedulingStrategy(node_id, soft=False)


def main() -> None:
    """Scores all combinations, prints each as it comes, then the best and where the work was done."""
    ray.init()
    nodes = [node for node in ray.nodes() if node["Alive"]]
    print(f"cluster: {len(nodes)} nodes, {ray.cluster_resources().get('CPU', 0):g} CPU slices", flush=True)
    # Every node's Python has scikit-learn loaded before the search begins; else the first to be ready does it all.
    ray.get([warm_up.options(scheduling_strategy=only_on(node["NodeID"])).remote() for node in nodes])
    started = time.monotonic()
    pending = [score.remote(gamma, penalty) for gamma, penalty in itertools.product(GAMMAS, PENALTIES)]
    total, results = len(pending), []
    while pending:
        done, pending = ray.wait(pending)
        gamma, penalty, accuracy, host = ray.get(done[0])
        results.append((accuracy, gamma, penalty, host))
        print(
            f"{len(results):3}/{total}  gamma={gamma:<7g} C={penalty:<5g} accuracy={accuracy:.4f}  on {host}",
            flush=True,
        )
    accuracy, gamma, penalty, _ = max(results)
    tasks = collections.Counter(host for *_, host in results)
    print(f"best: gamma={gamma:g} C={penalty:g} accuracy={accuracy:.4f}, found in {time.monotonic() - started:.1f} s")
    print("tasks by host: " + json.dumps(dict(sorted(tasks.items()))), flush=True)


if __name__ == "__main__":
    main()
