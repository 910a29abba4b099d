"""The contract of a task: what training, testing and the command line ask of it."""
from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Iterator, Sequence

from jea import ranks
from jea._jittor import jt
from jea.checkpoint import load_weights
from jea.data import Batch, Dataset, Loader, dataset_class, write_image
from jea.data.files.inputs import Input, InputKind
from jea.draw.attention import attention_sheet
from jea.errors import ConfigError, DataError
from jea.models import create_model, model_arguments, models_for
from jea.models.attention_maps import attention_maps, external_attentions
from jea.models.network import Network
from jea.results import Result
from jea.tasks.labels import ClassLabels, check_training_labels
from jea.tasks.options.training import EvalOptions, TrainOptions

_ATTENTION = "_attention.png"  # the end of a drawing's name beside a user's own file
AS_CONFIGURED = object()  # "the split that the config names", where None is a split of its own: all there is


@dataclass
class Attended:
    """A drawing of what external attention looks at. words: what it shows, for who cannot see it. numbers: {layer:
    jea.metrics.attention.MemoryUse.numbers}."""
    path: Path
    words: str
    numbers: dict


@dataclass
class Shown:
    """A picture that an evaluation wrote. score: the task's own measure of it, lower is worse; None where it has
    none. attention: what the attention looks at in it, where that was drawn."""
    path: Path
    caption: str
    score: float | None = None
    attention: Attended | None = None


@dataclass
class Evaluation:
    """What an evaluation found.

    score: judges which weights are best, higher is better; None where there was nothing to judge.
    values: named results for people, the log and JSON, in the order in which they are shown.
    shown: the pictures that it wrote, for the report; charts: other drawings.
    """
    score: float | None
    values: dict
    shown: list[Shown] = field(default_factory=list)
    charts: list[Shown] = field(default_factory=list)


class Task:
    """Model, data and metric of a config, made to work together. jea/README.md shows a task of one's own.

    A task defines at least `phases` and `evaluate`, and its model and data set what these use. What a task cannot do,
    it leaves out: the default raises a ConfigError that says so in the command line's words.

    Class attributes:
        name: as in the config; stands in checkpoints and messages.
        Train, Eval: dataclasses of the train and eval blocks, a TrainOptions and an EvalOptions.
        datasets: names of the data sets that fit (jea.data.DATASETS); None: any.
        loader_class: what makes batches of `training_data`.
        shares_evaluation: True: under mpirun all ranks call `evaluate`, each runs a part, all return the whole result;
            False: the first rank evaluates alone.
        takes: what users may give it of their own, or None. gives: what `predict` makes of each.
    Attributes:
        options, eval: the config's train and eval blocks, as Train and Eval.
        model: the network; num_classes: its. modules: name -> Module of all that is trained and saved.
        description: what stands in the checkpoints: task, model, data, train.

    Args:
        model: {"name": ..., keywords of jea.create_model}.
        data: {"name": ..., keywords of the data set}; its `split` is for training.
        train, eval: fields of Train and Eval.
        draw: compute the random start of the weights now, so that it depends on the seed alone. False is quicker where
            weights are loaded next; what is not loaded then has other random values.
    """

    name = ""
    Train, Eval = TrainOptions, EvalOptions
    datasets: tuple | None = None
    loader_class = Loader
    shares_evaluation = False
    takes: InputKind | None = None
    gives: type[Result] | None = None

    shows_attention = False  # see show_attention
    _loader: Loader | None = None

    def __init__(self, *, model: dict, data: dict, train: dict | None = None, eval: dict | None = None,
                 draw: bool = True):
        self.options, self.eval = self.Train(**(train or {})), self.Eval(**(eval or {}))
        self._model, self._data = dict(model), dict(data)
        jt.set_global_seed(self.options.seed)
        self.model = create_model(self._model["name"], **without_name(self._model))
        self.check_model()
        self.modules, self.num_classes = {"model": self.model}, self.count_classes()
        self.description = {"task": self.name, "model": self._model, "data": self._data, "train": asdict(self.options)}
        if draw:
            # Jittor draws random numbers when they are first used. In this order they are the same for any number of
            # processes, and whatever is made, looked at or trained in between.
            for var in self.model.state_dict().values():
                var.sync()

    def check_model(self) -> None:
        """Raise ConfigError unless the model solves this task."""
        said = self.model.solves if isinstance(self.model, Network) else ""
        if said == self.name or not self.name or not said and ":" in self._model["name"]:
            return  # a model or a task of the user's own need not say what it is for
        fitting = ", ".join(models_for(self.name))
        raise ConfigError(f"model.name is {self._model['name']}, which is not for {self.name}" +
                          f"; expected one of {fitting}" * bool(fitting))

    def count_classes(self) -> int:
        """How many classes the model tells apart; `check_sizes` compares it with the data set."""
        return self.model.num_classes

    def defaults(self, block: str) -> dict:
        """The values of options that a block of the config ("model", "data" or "train") does not name."""
        if block == "train":
            return asdict(self.Train())
        known = model_arguments(self._model["name"]) if block == "model" else \
            dataset_class(self._data["name"]).arguments()
        return {key: parameter.default for key, parameter in known.items() if parameter.default is not parameter.empty}

    # -- data -------------------------------------------------------------------------------------------------------

    def dataset(self, split=AS_CONFIGURED) -> Dataset:
        """Make the data set of the config, of the config's split or of another one."""
        arguments = without_name(self._data)
        if split is not AS_CONFIGURED:
            arguments["split"] = split
        dataset = dataset_class(self._data["name"])(**arguments)
        self.check_sizes(dataset)
        return dataset

    def check_sizes(self, dataset: Dataset) -> None:
        """Raise DataError unless the model has the outputs that the data set needs."""
        if dataset.num_classes != self.num_classes:
            raise DataError(f"{dataset.root}: has {dataset.num_classes} classes, the model {self.num_classes}; "
                            "set model.num_classes")

    def class_names(self) -> tuple[str, ...]:
        """Names of the model's classes: the data set's where it tells them without its files or they are there, else
        "class 0", ..."""
        names = tuple(dataset_class(self._data["name"]).class_names)
        if len(names) != self.num_classes:
            try:
                names = tuple(self.dataset(self.eval.split).class_names)
            except DataError:
                names = tuple(f"class {k}" for k in range(self.num_classes))
        return names

    def labels(self, dataset: Dataset) -> ClassLabels:
        """What the task tells apart in the labels of a data set, to say what never occurs in them."""
        return ClassLabels(dataset)

    def training_data(self) -> Dataset:
        """Make the data set as training sees it: augmented, cropped, in the model's size."""
        return self.dataset()

    @property
    def loader(self) -> Loader:
        """The batches of `training_data`, shared out among the ranks; at its first use the labels are looked at."""
        if self._loader is None:
            data = self.training_data()
            o = self.options
            check_training_labels(self.labels(data), num_workers=o.num_workers)
            self._loader = self.loader_class(data, batch_size=o.batch_size, seed=o.seed, num_workers=o.num_workers,
                                             share=(ranks.rank(), ranks.size()))
        return self._loader

    @property
    def samples(self) -> int | None:
        """How many samples the loader has; None before its first use."""
        return None if self._loader is None else len(self._loader.dataset)

    @property
    def batches_per_epoch(self) -> int:
        """How many batches an epoch has, the same on all ranks."""
        return len(self.loader)

    def batches(self, epoch: int, start_batch: int) -> Iterator[Batch]:
        """This rank's batches of an epoch from `start_batch` on: a function of the seed and the arguments alone."""
        return self.loader.epoch(epoch, start_batch)

    def close(self) -> None:
        """End the processes that read data."""
        if self._loader is not None:
            self._loader.close()
            self._loader = None

    # -- weights ----------------------------------------------------------------------------------------------------

    def weight_files(self, path) -> list:
        """[(network, file), ...] of a checkpoint, which is one file for `model` unless the task knows better."""
        return [(self.model, path)]

    def load(self, path, *, ema: bool = True, strict: bool = True) -> str:
        """Load a checkpoint into the task's networks; what was loaded, in words. Options as load_weights."""
        return "\n".join(str(load_weights(network, file, ema=ema, strict=strict))
                         for network, file in self.weight_files(path))

    # -- training ---------------------------------------------------------------------------------------------------

    def phases(self, total_steps: int) -> list:
        """Make the jea.training.phase.Phase of each optimizer; called once per run of `total_steps` steps."""
        raise self.cannot("train", "jea test evaluates it")

    def begin_training(self) -> None:
        """Put the modules into the mode in which they train, and fail for what evaluations will miss."""
        for module in self.modules.values():
            module.train()

    # -- evaluation -------------------------------------------------------------------------------------------------

    def evaluate(self, out, *, split: str | None = None, limit: int | None = None, progress: bool = True) -> Evaluation:
        """Run over a split (default: eval.split) and score it.

        out: folder for pictures and tables. limit: only the first so many samples. progress: show a bar.
        """
        raise self.cannot("evaluate a data set", "--input runs it on your own files")

    def prepare_prediction(self) -> None:
        """Look up what all predictions need, such as names, and fail now for what is wrong with it."""

    def predict(self, inputs: Sequence[Input]) -> list[Result]:
        """What is found in each input, in their order, as `gives`. They run together where that saves time."""
        raise self.cannot("take single inputs", "it evaluates a data set")

    def generate(self, count: int, *, seed: int = 0, labels=None) -> Result:
        """Make `count` pictures, which follow from the seed. labels: their classes, default: in turn."""
        raise self.cannot("predict in Python", "it has neither `takes` and `predict` nor `generate`")

    def predict_files(self, inputs: list, outputs, *, progress: bool = True) -> dict:
        """Run on files that are no data set; returns a dict for people and JSON.

        inputs: paths, of `list_inputs`. outputs: a jea.tasks.outputs.Outputs, which gives each input its names to write
        to, goes on after a bad file and keeps what was found.
        """
        if self.takes is None or self.gives is None:
            raise self.cannot("take single files", "leave --input out")
        self.prepare_prediction()
        if self.gives.list_name:
            outputs.keep_as(self.gives.list_name)
        suffixes = (*self.gives.suffixes, *[_ATTENTION] * self.shows_attention)
        for item in outputs.each(suffixes, unit=self.takes.unit, progress=progress):
            with item:
                one = self.takes.input(item.input)
                found, = self.predict([one])
                drawn = self.draw_attention(item.path(_ATTENTION), one.value)
                item.found(**found.write_files(item.path), **({"attention": str(drawn.path)} if drawn else {}))
        return outputs.result(self.takes.counted)

    def list_inputs(self, path) -> list:
        """The files that `--input` names: one, or those in a folder that the task can read."""
        if self.takes is None:
            raise self.cannot("take single files", "leave --input out")
        return self.takes.list(path)

    def show_attention(self) -> None:
        """Draw what the external attention looks at beside each picture that is written from now on; ConfigError where
        the model has none. To be called before `fuse`."""
        if type(self).attention_view is Task.attention_view:
            self.attention_view()
        if not external_attentions(self.model):
            raise ConfigError(f"--attention: {self._model['name']} as configured has no external attention; leave it "
                              "out")
        self.shows_attention = True

    def attention_view(self, *seen) -> tuple:
        """(network, its inputs, {title: what to draw on}), with a jea.draw.attention.OnPicture or OnCloud for each
        sample. seen: what a user gives, such as a picture, or what the task's own evaluation passes on."""
        raise self.cannot("show its attention", "leave --attention out")

    def draw_attention(self, path, *seen) -> Attended | None:
        """Write the drawing of what `attention_view` takes; None where `show_attention` was not called."""
        if not self.shows_attention:
            return None
        network, inputs, views = self.attention_view(*seen)
        layers = [view.layer(f"{title}, {name}" if title else name, found, number)
                  for name, found in attention_maps(network, *inputs).items()
                  for number, (title, view) in enumerate(views.items())]
        layers = [layer for layer in layers if layer is not None]
        if not layers:
            raise ConfigError("--attention: no position of this model's attention has a place in the picture; leave it "
                              "out")
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_image(path, attention_sheet(layers))
        return Attended(Path(path), "; ".join(layer.words() for layer in layers),
                        {layer.title: layer.numbers() for layer in layers})

    def fuse(self, precision: str = "float32") -> None:
        """Evaluate the folded form of the network from now on, in this precision; the task no longer trains."""
        if precision != "float32":
            raise self.cannot(f"run in {precision}", "leave --precision out")

    def multi_scale(self) -> None:
        """Evaluate as for published results from now on."""
        raise ConfigError(f"--multi-scale: there is no such test for {self.name}; leave it out")

    def cannot(self, what: str, remedy: str) -> ConfigError:
        """The error for what a task does not do."""
        return ConfigError(f"{self.name or type(self).__name__} does not {what}: {remedy}")


def without_name(block: dict) -> dict:
    """A block of the config without the key `name`: the keywords of what is named."""
    return {key: value for key, value in block.items() if key != "name"}


def alike(keys: Sequence) -> list[list[int]]:
    """The places of equal keys together, in the order in which they come first."""
    places: dict = {}
    for place, key in enumerate(keys):
        places.setdefault(key, []).append(place)
    return list(places.values())
