"""Many small trainings at once, on one accelerator with JAX.

A step of a network of a million weights leaves an accelerator idle. Here the same step
of several runs, of other seeds, teachers or learning rates, is one computation
(`jax.vmap`), and hundreds of steps are one call (`jax.lax.scan`). What is trained are
the package's own trainers; a run's weights are lists of arrays by part.
"""

import math

import jax
import jax.numpy as jnp
import keras
import numpy as np

from keras_bridle.training.optimizers import adamw

STEPS_OF_A_CALL = 250
# Runs trained and probed at a time. What is compiled is compiled for so many.
GROUP, FEW = 6, 3


def on_cpu():
    """The context to make networks in: hundreds of tiny computations."""
    return jax.default_device(jax.devices("cpu")[0])


def numbers_of(part):
    """The weights of a layer as NumPy arrays."""
    return [np.asarray(weight.value) for weight in part.weights]


def scope(variables, values):
    """The context in which Keras variables have other values."""
    return keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True)))


def cosine(peak, steps, of=None, warmup=0.05):
    """Rates of a run: linear warm-up, half a cosine, zeros up to `of` steps."""
    rise = max(1, int(warmup * steps))
    step = np.arange(steps)
    fall = 0.5 * (1 + np.cos(np.pi * (step - rise) / max(1, steps - rise)))
    rates = peak * np.where(step < rise, (step + 1) / rise, fall)
    return np.pad(rates, (0, (of or steps) - steps)).astype("float32")


class Runs:
    """The training of several runs by one trainer.

    Args:
        trainer: Keras model, whose parts are attributes of it.
        inputs: function of `(common, own, rows)`, the trainer's input: `common` are
            arrays that all runs share, `own` those of one run, `rows` a batch's.
        loss: function of `(outputs, common, own, rows)`.
        batch_size: int.
        decay: float, weight decay.
    """

    def __init__(self, trainer, inputs, loss, batch_size, decay=1e-4):
        self.trainer = trainer
        trainer.trainable = True
        if hasattr(trainer, "set_trained_parts"):
            trainer.set_trained_parts()
        self.optimizer = adamw(trainer, 1.0, decay)
        self.optimizer.build(trainer.trainable_variables)
        self.variables = [*trainer.trainable_variables]
        self.others = [*trainer.non_trainable_variables]
        self.slots = [*self.optimizer.variables]
        self.start = [
            [np.asarray(v.value) for v in several]
            for several in (self.variables, self.others, self.slots)
        ]
        names = [variable.name for variable in self.slots]
        self.rate = names.index("learning_rate")
        self.inputs, self.loss, self.batch_size = inputs, loss, batch_size
        self.places = {
            id(v): (kind, i)
            for kind, several in enumerate((self.variables, self.others))
            for i, v in enumerate(several)
        }

        def step(carry, rate, common, own):
            weights, others, slots, key = carry
            key, draw = jax.random.split(key)
            rows = jax.random.randint(draw, (batch_size,), 0, own["size"])
            if "pool" in own:
                rows = own["pool"][rows]
            given = inputs(common, own, rows)

            def objective(weights):
                outputs, new = trainer.stateless_call(
                    weights, others, given, training=True
                )
                return loss(outputs, common, own, rows), new

            (value, others), gradients = jax.value_and_grad(objective, has_aux=True)(
                weights
            )
            slots = [*slots]
            slots[self.rate] = rate
            weights, slots = self.optimizer.stateless_apply(slots, gradients, weights)
            return (weights, others, slots, key), value

        def steps(carry, rates, common, own):
            def one(carry, rate):
                return step(carry, rate, common, own)

            return jax.lax.scan(one, carry, rates)

        self.call = jax.jit(
            jax.vmap(steps, in_axes=(0, 0, None, 0)), donate_argnums=(0,)
        )

    def part(self, name):
        """A part of the trainer by name; without one, the trainer itself."""
        return getattr(self.trainer, name) if name else self.trainer

    def state(self, parts, seed):
        """The state that a run begins with: weights of parts by name."""
        state = [[*values] for values in self.start]
        for name, weights in parts.items():
            for variable, value in zip(self.part(name).weights, weights, strict=True):
                kind, index = self.places[id(variable)]
                state[kind][index] = value
        for index, variable in enumerate(self.others):
            if "seed_generator" in variable.path:
                state[1][index] = np.array([seed, index], variable.dtype)
        return state

    def train(self, runs, rates, common, own, each=None, every=None):
        """Trains runs, some at a time, and gives losses and a reader.

        Args:
            runs: list of pairs of weights by part and a seed.
            rates: list of arrays, the learning rates of each run.
            common, own: dicts of arrays; those of `own` have a list, one for each run.
            each: optional function of `(step, reader)`, called every `every` steps.

        Returns:
            Tuple of the last call's mean losses, one for each run, and a function of a
            part's name that gives its weights, those of all runs stacked.
        """
        order = np.argsort([np.count_nonzero(x) for x in rates], kind="stable")
        ends, losses = [], []
        for start in range(0, len(order), GROUP):
            # A group that lacks some is filled up: nothing is compiled for it.
            some = np.resize(order[start : start + GROUP], GROUP)
            end, loss = self.train_group(
                [runs[i] for i in some],
                np.stack([rates[i] for i in some]),
                common,
                {k: np.stack([x[i] for i in some]) for k, x in own.items()},
                each,
                every,
            )
            ends.append(end)
            losses.append(loss)
        place = np.empty(len(order), int)
        place[order] = np.arange(len(order))

        def joined(*arrays):
            return jnp.concatenate(arrays)[place]

        return np.asarray(joined(*losses)), self.reader(jax.tree.map(joined, *ends))

    def train_group(self, runs, rates, common, own, each, every):
        states = [self.state(parts, seed) for parts, seed in runs]
        carry = jax.tree.map(lambda *arrays: jnp.stack(arrays), *states)
        keys = jax.random.split(jax.random.key(0), len(runs))
        keys = jax.vmap(jax.random.fold_in)(keys, jnp.array([s for _, s in runs]))
        carry = (*carry, keys)
        own = {name: jnp.asarray(values) for name, values in own.items()}
        rates = rates[:, : np.count_nonzero(rates, axis=1).max()]
        # A whole number of calls, of one size: nothing is compiled twice.
        rates = np.pad(rates, ((0, 0), (0, -rates.shape[1] % STEPS_OF_A_CALL)))
        for start in range(0, rates.shape[1], STEPS_OF_A_CALL):
            some = jnp.asarray(rates[:, start : start + STEPS_OF_A_CALL])
            carry, losses = self.call(carry, some, common, own)
            done = start + STEPS_OF_A_CALL
            if each is not None and done % every == 0:
                each(done, self.reader(carry[:2]))
        return carry[:2], jnp.mean(losses, axis=1)

    def reader(self, values):
        """Makes the function that gives the weights of a part of all runs, stacked."""

        def read(name=""):
            weights = self.part(name).weights
            places = [self.places[id(variable)] for variable in weights]
            return [values[kind][index] for kind, index in places]

        return read


def of_run(weights, index):
    """The weights of one run, from those of all of them."""
    return [np.asarray(weight[index]) for weight in weights]


def stacked(several):
    """Stacks the weights of runs."""
    return [jnp.stack(values) for values in zip(*several, strict=True)]


def mapped(part, function):
    """Makes the function `(weights of runs, maps)` of a part, for all runs at once."""
    variables = [*part.weights]

    def one(weights, maps):
        with scope(variables, weights):
            return function(maps)

    return jax.jit(jax.vmap(one, in_axes=(0, None)))


def in_chunks(function, weights, count, maps_of, size=500):
    """Calls a function of `mapped()` on all rows, a few runs at a time."""
    runs, found = len(weights[0]), []
    for first in range(0, runs, FEW):
        some = np.minimum(np.arange(first, first + FEW), runs - 1)
        some_weights = [weight[some] for weight in weights]
        parts = []
        for start in range(0, count, size):
            # The last chunk is filled up with its last row.
            rows = np.minimum(np.arange(start, start + size), count - 1)
            parts.append(function(some_weights, maps_of(rows)))
        found.append(
            jax.tree.map(lambda *x: jnp.concatenate(x, axis=1)[:, :count], *parts)
        )
    return jax.tree.map(lambda *x: jnp.concatenate(x)[:runs], *found)


def few_at_a_time(function, *arrays):
    """Calls a function on a few runs' arrays at a time, as what is compiled wants."""
    runs, found = len(arrays[0]), []
    for first in range(0, runs, FEW):
        some = np.minimum(np.arange(first, first + FEW), runs - 1)
        found.append(function(*(array[some] for array in arrays)))
    return jax.tree.map(lambda *x: jnp.concatenate(x)[:runs], *found)


@jax.jit
def probes(train, labels, validation, validation_labels, test, test_labels):
    """Accuracy of linear probes of several runs' features, of validation and test.

    `train` is of shape `(runs, draws, rows, dim)`, the others have no draws; accuracy
    is the mean over these. Logistic regression on standardized features, by Nesterov's
    method. Which weight decay is best is decided on the validation rows.
    """

    def of_draw(train, labels, validation, test):
        mean, deviation = train.mean(axis=0), train.std(axis=0) + 1e-6
        train, validation, test = (
            jnp.pad((x - mean) / deviation, ((0, 0), (0, 1)), constant_values=1.0)
            for x in (train, validation, test)
        )
        hot = jax.nn.one_hot(labels, CLASSES)
        vector = jnp.ones(train.shape[1])
        for _ in range(20):  # the largest eigenvalue, by the power method
            vector = train.T @ (train @ vector) / len(train)
            largest = jnp.linalg.norm(vector)
            vector = vector / largest

        def fitted(decay):
            rate = 1.0 / (0.5 * largest + decay)
            root = jnp.sqrt(decay * rate)
            momentum = (1 - root) / (1 + root)

            def move(_, both):
                last, ahead = both
                errors = jax.nn.softmax(train @ ahead) - hot
                new = ahead - rate * (train.T @ errors / len(train) + decay * ahead)
                return new, new + momentum * (new - last)

            zeros = jnp.zeros((train.shape[1], CLASSES))
            return jax.lax.fori_loop(0, 300, move, (zeros, zeros))[0]

        heads = jax.vmap(fitted)(jnp.array(DECAYS))
        right = [
            jnp.mean(jnp.argmax(x @ heads, axis=-1) == y, axis=-1)
            for x, y in ((validation, validation_labels), (test, test_labels))
        ]
        best = jnp.argmax(right[0])
        return right[0][best], right[1][best]

    def of_run(train, validation, test):
        of_draws = jax.vmap(of_draw, in_axes=(0, 0, None, None))
        return [jnp.mean(x) for x in of_draws(train, labels, validation, test)]

    with jax.default_matmul_precision("highest"):
        return jax.vmap(of_run)(train, validation, test)


CLASSES = 32  # as many as any data here have, or more
DECAYS = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)


@jax.jit
def neighbors(train, labels, test, test_labels):
    """Accuracy of the vote of the 10 nearest training rows, by cosine."""

    def of_run(train, test):
        mean = train.mean(axis=0)
        train, test = (
            (x - mean) / (jnp.linalg.norm(x - mean, axis=1, keepdims=True) + 1e-6)
            for x in (train, test)
        )
        _, nearest = jax.lax.top_k(test @ train.T, 10)
        votes = jax.nn.one_hot(labels[nearest], CLASSES).sum(axis=1)
        return jnp.mean(jnp.argmax(votes, axis=1) == test_labels)

    return jax.vmap(of_run)(train, test)


@jax.jit
def likeness(patches):
    """How unlike an input's tokens are: their deviation, and the effective rank.

    The deviation is that over the tokens of an input, relative to tokens' root mean
    square; the rank, of all tokens, is the exponential of the eigenvalues' entropy.
    """

    def of_run(patches):
        patches = patches.astype("float32")
        size = jnp.sqrt(jnp.mean(jnp.square(patches)))
        deviation = jnp.sqrt(jnp.mean(jnp.var(patches, axis=1)))
        rows = patches.reshape(-1, patches.shape[-1])
        values = jnp.linalg.eigvalsh(jnp.cov(rows.T))
        shares = jnp.maximum(values, 1e-12) / jnp.sum(jnp.maximum(values, 1e-12))
        return deviation / size, jnp.exp(-jnp.sum(shares * jnp.log(shares)))

    return jax.vmap(of_run)(patches)


def code_statistics(codes, num_codes):
    """What the first level's codes are: entropy, and the share that place tells.

    Args:
        codes: int array of shape `(examples, patches)`.
        num_codes: int.

    Returns:
        A dict: the perplexity, and the mutual information of code and position as a
        share of the entropy.
    """
    table = np.zeros((codes.shape[1], num_codes))
    for place in range(codes.shape[1]):
        table[place] = np.bincount(codes[:, place], minlength=num_codes)
    table /= table.sum()

    def entropy(shares):
        shares = shares[shares > 0]
        return -(shares * np.log(shares)).sum()

    whole = entropy(table.sum(axis=0))
    information = whole + math.log(codes.shape[1]) - entropy(table)
    return {
        "perplexity": float(math.exp(whole)),
        "told by place": float(information / max(whole, 1e-9)),
    }
