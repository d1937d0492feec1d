"""Roles that follow another one by a moving average: momentum encoders, averaged teachers."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from kdjax.training.stage import Context, PyTree, Term, Variables


def moving_average(average: PyTree, new: PyTree, decay: jax.Array | float) -> PyTree:
    """One step of an exponential moving average, leaf by leaf.

        average -> decay average + (1 - decay) new

    Args:
      average, new: trees of arrays of the same shapes.
      decay: scalar in [0, 1]; may be traced.

    Returns:
      A tree in the types of `average`.

    >>> moving_average({"w": jnp.array([1.0])}, {"w": jnp.array([2.0])}, 0.9)["w"].round(3).tolist()
    [1.100000023841858]
    """
    return jax.tree.map(
        lambda old, x: (decay * old + (1 - decay) * x).astype(old.dtype), average, new
    )


def follow(
    leader: str,
    follower: str,
    decay: float | Callable[[Context], jax.Array],
    copy_first: bool = False,
) -> Callable[[Variables, Context, Mapping[str, Term]], tuple[Variables, PyTree]]:
    """An update's `after` in which one role follows another: its parameters are their average.

    Other collections (batch statistics) are the leader's as they are. The follower is to be named
    in the program's `carries`.

    Args:
      leader: the role that is trained.
      follower: the role that follows, of the same structure.
      decay: in [0, 1]; or a function of the context, such as
        `lambda context: context.values["decay"]`, for a schedule.
      copy_first: the first step copies the leader, as if the decay were 0.

    Raises:
      ValueError: a decay outside [0, 1]; one role for both.

    Source: Tarvainen and Valpola 2017 (arXiv:1703.01780); He et al. 2020 (MoCo, arXiv:1911.05722).

    >>> after = follow("student", "teacher", 0.5)
    >>> variables = {role: {"params": {"w": jnp.array(x)}} for role, x in
    ...              (("student", 2.0), ("teacher", 0.0))}
    >>> new, _ = after(variables, Context({}, None, jnp.int32(3), {}), {})
    >>> float(new["teacher"]["params"]["w"]), float(new["student"]["params"]["w"])
    (1.0, 2.0)
    """
    if not callable(decay) and not 0 <= decay <= 1:
        raise ValueError(f"decay must be in [0, 1], got {decay}")
    if leader == follower:
        raise ValueError(f"{leader!r} cannot follow itself")

    def after(variables, context, metrics):
        rate = decay(context) if callable(decay) else decay
        if copy_first:
            rate = jnp.where(context.step == 0, 0.0, rate)
        ahead, behind = variables[leader], variables[follower]
        moved = moving_average(behind["params"], ahead["params"], rate)
        return {**variables, follower: {**ahead, "params": moved}}, context.memory

    return after
