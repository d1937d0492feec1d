"""The inputs of a golden case, and adapters of the commonest shapes of a file."""

import jax
import jax.numpy as jnp


class Case(dict):
    """{name: array or hyperparameter}, which remembers what was read."""

    def __init__(self, arrays, read=None):
        super().__init__(arrays)
        self.read = set() if read is None else read

    def __getitem__(self, key):
        self.read.add(key)
        return super().__getitem__(key)

    def with_(self, arrays):
        """The case with other values of some arrays, of which what is read counts here."""
        return Case({**self, **arrays}, self.read)


def loss_and_gradients(loss, *wanted, value="loss", gradient="grad_{}"):
    """The adapter of a scalar loss(case) and of its gradient in the named inputs."""

    def adapter(case):
        def of_wanted(arrays):
            return loss(case.with_(arrays))

        arrays = {name: case[name] for name in wanted}
        result, gradients = jax.jit(jax.value_and_grad(of_wanted))(arrays)
        return {value: result, **{gradient.format(name): gradients[name] for name in wanted}}

    return adapter


def student_loss(loss):
    """The adapter of a scalar loss of a case, with its gradient in the student's logits."""
    return loss_and_gradients(loss, "student_logits")


def batch_loss(kernel, *hyperparameters, labels=False):
    """Mean over the batch of kernel(student, teacher[, labels])."""

    def loss(case):
        arrays = [case["student_logits"], case["teacher_logits"]]
        arrays += [case["labels"]] if labels else []
        return kernel(*arrays, **{name: case[name] for name in hyperparameters}).mean()

    return student_loss(loss)


def token_loss(divergence):
    """Mean over the tokens whose label is not -100 of divergence(teacher, student, case)."""

    def loss(case):
        where = case["labels"] != -100
        values = divergence(case["teacher_logits"], case["student_logits"], case)
        return jnp.sum(jnp.where(where, values, 0.0)) / jnp.maximum(jnp.sum(where), 1)

    return student_loss(loss)


def channels_last(maps):
    """[batch, channels, height, width] -> [batch, height, width, channels]."""
    return jnp.moveaxis(maps, 1, -1)
