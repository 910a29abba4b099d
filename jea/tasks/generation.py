"""Class-conditional image generation: StudioGAN's SAGAN recipe (hinge loss, Adam, several D steps per G step) and the
Frechet distance of the samples.

FID wants the features of `inception_fid`, whose weights are a file of pytorch-fid. Without the file the features of a
small fixed random network (jea.models.inception.RandomFeatures) give the `fid_proxy`, which is no FID.
"""
from __future__ import annotations

import hashlib
import json
import numbers
import os
import zlib
from pathlib import Path

import numpy as np

from jea._jittor import jt, nn
from jea.checkpoint import CheckpointError, load_npz, load_weights, save_npz
from jea.data import DataError, map_ordered, write_image
from jea.data.views.centred import CentredView
from jea.draw.attention import OnPicture
from jea.draw.sheets import sheet
from jea.errors import ConfigError, nearest
from jea.files import jea_home
from jea.metrics.generation import Gaussian, Moments, frechet_distance, inception_score
from jea.models import create_model
from jea.models.inception import RandomFeatures
from jea.nn.fold import fuse
from jea.nn.gan import ConditionalBatchNorm2d
from jea.nn.mode import evaluating, keeping_buffers
from jea.nn.norm import BatchNorm2d
from jea.nn.spectral_norm import spectral_norms
from jea.progress import progress as progress_bar
from jea.results import Samples
from jea.tasks.options import generation as options
from jea.tasks.task import Evaluation, Shown, Task
from jea.training.averages import WeightAverage
from jea.training.optimizers import Adam
from jea.training.phase import Phase

NO_INCEPTION = ("fid_proxy is the distance of random features and no FID; for the FID take "
                "pt_inception-2015-12-05-6726825d.pth from the fid_weights release of mseitzer/pytorch-fid and set "
                "eval.inception to it")
_CLASSES_SHOWN, _COLUMNS, _CLASSES_ATTENDED = 20, 10, 5


class Generation(Task):
    """Pictures of given classes. Its models are pairs with a `generator` and a `discriminator`.

    A step of the loop is one step of the discriminator; every `d_steps`-th also trains the generator. Either phase
    leaves the other network untouched, its running statistics and power iterations included (upstream's D steps move
    those of G).
    """

    name = "generation"
    Train, Eval, datasets = options.Train, options.Eval, options.DATASETS

    def __init__(self, **blocks):
        super().__init__(**blocks)
        self.generator = self.model.generator  # what evaluation runs
        self._features, self._step = None, None

    def count_classes(self) -> int:
        return self.model.generator.num_classes

    def weight_files(self, path) -> list:
        """[(network, file), ...] of a checkpoint of the pair, StudioGAN's file of one network, or its folder with one
        file for each, where the best weights are preferred to the current ones."""
        if not os.path.isdir(path):
            return [(self.model, path)]
        found = []
        for name, network in (("G", self.model.generator), ("D", self.model.discriminator)):
            files = [file for kind in ("best", "current")
                     for file in sorted(Path(path).glob(f"model={name}-{kind}-weights-step=*.pth"))]
            if not files:
                raise CheckpointError(path, f"no model={name}-best-weights-step=*.pth or -current- in this folder")
            found.append((network, files[0]))
        return found

    def fuse(self, precision: str = "float32") -> None:
        """Evaluate with folded spectral normalisation from now on; the task no longer trains."""
        self.generator, self.model, self.modules = fuse(self.model.generator, precision), None, {}

    # -- training ---------------------------------------------------------------------------------------------------

    def training_data(self):
        return CentredView(self.dataset(), size=self.generator.img_size, flip=self.options.flip)

    def batches(self, epoch: int, start_batch: int):
        """Batches of {"image" (B, 3, S, S) float32 in [-1, 1], "label" (B,) int32, "index" (B,)}."""
        first = epoch * self.batches_per_epoch + start_batch
        for self._step, batch in enumerate(self.loader.epoch(epoch, start_batch), first + 1):
            yield batch

    def begin_training(self) -> None:
        if self.eval.metrics:
            self.feature_network()  # fail now, not at the first evaluation
        super().begin_training()

    def phases(self, total_steps: int) -> list:
        o, phases = self.options, []
        for name, network, rate, losses, every in (
                ("discriminator", self.model.discriminator, o.lr_d, self.discriminator_losses, 1),
                ("generator", self.model.generator, o.lr_g, self.generator_losses, o.d_steps)):
            parameters = [var for var in network.parameters() if not var.is_stop_grad()]
            phases.append(Phase(name=name, losses=losses, every=every,
                                optimizer=Adam(parameters, lr=rate, betas=(o.beta1, o.beta2), eps=1e-6)))
        if o.ema_decay:
            phases[1].average = WeightAverage(self.model.generator, o.ema_decay, copied=("weight_u", "weight_v"))
        return phases

    def discriminator_losses(self, batch: dict) -> dict:
        """Hinge loss of real and new pictures in one batch, so that one power iteration serves both."""
        real, real_labels = jt.array(batch["image"]), jt.array(batch["label"])
        count = len(real)
        with jt.no_grad(), keeping_buffers(self.model.generator):
            fake, fake_labels = self.new_pictures(count)
            fake.sync()
        scores = self.model.discriminator(jt.concat([real, fake]), jt.concat([real_labels, fake_labels]))
        loss = hinge_d(scores[:count], scores[count:])
        return {"loss": loss, "real": scores[:count].mean(), "fake": scores[count:].mean(),
                "norms": spectral_norms(self.model.discriminator)}

    def generator_losses(self, batch: dict) -> dict:
        with keeping_buffers(self.model.discriminator):
            fake, labels = self.new_pictures(len(batch["image"]))
            loss = hinge_g(self.model.discriminator(fake, labels))
        return {"loss": loss, "norms": spectral_norms(self.model.generator)}

    def new_pictures(self, count: int):
        """Pictures of random classes with the device's random numbers, and the classes."""
        labels = jt.randint(0, self.generator.num_classes, (count,)).int32()
        return self.generator(jt.randn(count, self.generator.z_dim), labels), labels

    # -- evaluation ---------------------------------------------------------------------------------------------------

    def sample(self, z: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Pictures (N, S, S, 3) uint8 of noise (N, z_dim) and classes (N,), or mixtures (N, num_classes) float32."""
        pictures, size = [], self.eval.batch_size
        with evaluating(self.generator), keeping_buffers(self.generator):
            if self.eval.batch_statistics:
                for module in self.generator.modules():
                    if isinstance(module, (BatchNorm2d, ConditionalBatchNorm2d)):
                        module.is_train = True
            for start in range(0, len(z), size):
                x = self.generator(jt.array(np.ascontiguousarray(z[start:start + size])),
                                   np.ascontiguousarray(labels[start:start + size])).numpy()
                pictures.append(np.clip(np.rint((x + 1) * 127.5), 0, 255).astype(np.uint8).transpose(0, 2, 3, 1))
        return np.concatenate(pictures)

    def prepare_prediction(self) -> None:
        self._names = self.class_names()

    def generate(self, count: int, *, seed: int = 0, labels=None) -> Samples:
        """Make pictures; noise and classes with seed 1 are those that `evaluate` scores.

        labels: (count,) classes, numbers or names, or one for all; or mixtures, floats (count, num_classes); default:
        the classes in turn.
        """
        g = self.generator
        for word, value, least in (("count", count, 1), ("seed", seed, 0)):
            if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
                raise ConfigError(f"{word} is {value!r}; expected an integer of at least {least}")
        chosen = _in_turn(count, g.num_classes) if labels is None else self._labels(count, labels)
        return Samples(self.sample(_noise(count, g.z_dim, seed), chosen), chosen, names=self._names, seed=int(seed))

    def _labels(self, count: int, labels) -> np.ndarray:
        """The classes of `generate`: (count,) int32 or (count, num_classes) float32."""
        classes, names = self.generator.num_classes, list(self._names)
        given = labels if isinstance(labels, (list, tuple, np.ndarray)) else [labels] * count
        for label in given:
            if isinstance(label, str) and label not in names:
                raise ConfigError(f"labels has {label!r}; there are {', '.join(names)}{nearest(label, names)}")
        try:
            found = np.asarray([names.index(label) if isinstance(label, str) else label for label in given])
        except ValueError:  # rows of different lengths
            found = np.zeros(0)
        if found.dtype.kind in "iu" and found.shape == (count,) and 0 <= found.min() and found.max() < classes:
            return found.astype(np.int32)
        if found.dtype.kind == "f" and found.shape == (count, classes) and np.isfinite(found).all():
            return found.astype(np.float32)
        raise ConfigError(f"labels is {found.dtype} {found.shape}; expected {count} classes, names or numbers below "
                          f"{classes}, or mixtures, floats ({count}, {classes})")

    def evaluate(self, out, *, split: str | None = None, limit: int | None = None, progress: bool = True) -> Evaluation:
        """Draw, and compare samples with a split: {"score": -fid, "fid": ..., "inception_score": ..., "samples": ...}.

        Without eval.inception it is {"score": -fid_proxy, "fid_proxy": ..., ..., "note": how to get the FID}. The score
        is minus the distance, as "best" is the highest; without eval.metrics there is none. `limit`: generate at most
        so many pictures. Noise and classes are the same every time.
        Writes samples.png (a row per class), interpolation.png, while training also samples_<step>.png, and the
        pictures themselves with eval.save.
        """
        out, g = Path(out), self.generator
        out.mkdir(parents=True, exist_ok=True)
        self.draw(out)
        drawn = [Shown(out / "samples.png", "Samples, a row per class",
                       attention=self.draw_attention(out / "attention.png")),
                 Shown(out / "interpolation.png", "From one noise vector, then from one class, to another")]
        count = self.eval.samples if limit is None else max(2, min(limit, self.eval.samples))
        if not (self.eval.metrics or self.eval.save):
            return Evaluation(None, {"samples": 0}, charts=drawn)
        z, labels = _noise(count, g.z_dim, 1), _in_turn(count, g.num_classes)
        real = self.reference(self.eval.split if split is None else split,
                              progress=progress) if self.eval.metrics else None
        moments, logits, saved, size = Moments(), [], [], self.eval.batch_size
        for start in progress_bar(range(0, count, size), title="samples", unit="batch", shown=progress):
            pictures = self.sample(z[start:start + size], labels[start:start + size])
            if self.eval.metrics:
                features, scores = self.features(pictures)
                moments.update(features)
                logits.append(scores)
            if self.eval.save == "npz":
                saved.append(pictures)
            elif self.eval.save:
                (out / "samples").mkdir(exist_ok=True)
                for number, picture in enumerate(pictures, start):
                    write_image(out / "samples" / f"{number:06d}_class{labels[number]:03d}.png", picture)
        if saved:
            save_npz(out / "samples.npz", {"images": np.concatenate(saved), "labels": labels})
        if not self.eval.metrics:
            return Evaluation(None, {"samples": count}, charts=drawn)
        distance = frechet_distance(moments.gaussian(), real)
        if self.eval.inception:
            found = {"fid": distance, "inception_score": inception_score(np.concatenate(logits), self.eval.splits)[0],
                     "samples": count}
        else:
            found = {"fid_proxy": distance, "samples": count, "note": NO_INCEPTION}
        return Evaluation(-distance, {"score": -distance, **found}, charts=drawn)

    def attention_view(self) -> tuple:
        """The generator's attention in a sample of each of the first classes: those that begin the rows of
        samples.png."""
        g = self.generator
        labels = np.arange(min(g.num_classes, _CLASSES_ATTENDED), dtype=np.int32)
        z = np.random.Generator(np.random.PCG64(2)).standard_normal((_COLUMNS * len(labels), g.z_dim), np.float32)
        z = np.ascontiguousarray(z[::_COLUMNS])
        return g, (z, labels), {f"class {label}": OnPicture(picture)
                                for label, picture in zip(labels, self.sample(z, labels))}

    def draw(self, out_dir: Path) -> None:
        """Write samples.png and interpolation.png, from fixed noise."""
        g, rng = self.generator, np.random.Generator(np.random.PCG64(2))
        shown = min(g.num_classes, _CLASSES_SHOWN)
        z = rng.standard_normal((shown * _COLUMNS, g.z_dim), np.float32)
        pictures = self.sample(z, np.repeat(np.arange(shown, dtype=np.int32), _COLUMNS))
        zoom = max(1, 64 // g.img_size)
        picture = sheet(pictures, _COLUMNS, zoom=zoom)
        write_image(out_dir / "samples.png", picture)
        if self._step is not None:
            write_image(out_dir / f"samples_{self._step:07d}.png", picture)
        # Upper half: from one noise vector to another within a class; lower half: from one class to the next.
        share = np.linspace(0, 1, _COLUMNS, dtype=np.float32)[:, None]
        rows, noise, eye = min(shown, 5), [], np.eye(g.num_classes, dtype=np.float32)
        ends, mixtures = rng.standard_normal((rows, 2, 1, g.z_dim), np.float32), []
        for row in range(rows):
            noise.append(np.cos(share * np.pi / 2) * ends[row, 0] + np.sin(share * np.pi / 2) * ends[row, 1])
            mixtures.append(np.repeat(eye[row:row + 1], _COLUMNS, axis=0))
        for row in range(rows):
            noise.append(np.repeat(ends[row, 0], _COLUMNS, axis=0))
            mixtures.append((1 - share) * eye[row] + share * eye[(row + 1) % g.num_classes])
        pictures = self.sample(np.concatenate(noise), np.concatenate(mixtures))
        write_image(out_dir / "interpolation.png", sheet(pictures, _COLUMNS, zoom=zoom))

    # -- features -----------------------------------------------------------------------------------------------------

    def features(self, pictures: np.ndarray):
        """(N, S, S, 3) uint8 -> features (N, C), and the scores of the classes for the Inception Score or None."""
        network, _ = self.feature_network()
        x = jt.array(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2), np.float32) / np.float32(255))
        with evaluating(network):
            if self.eval.inception:
                features, logits = network(x, return_logits=True)
                return features.numpy(), logits.numpy()
            return network(x).numpy(), None

    def feature_network(self):
        """The network behind the distance and a text that tells its weights from others."""
        if self._features is None:
            if self.eval.inception:
                network = create_model("inception_fid")
                load_weights(network, self.eval.inception)
                checksum = 0
                for var in network.parameters():
                    checksum = zlib.crc32(np.ascontiguousarray(var.numpy()), checksum)
                self._features = network, f"inception_fid {checksum:08x}"
            else:
                self._features = RandomFeatures(), "random 1"
        return self._features

    def reference(self, split: str | None, *, progress: bool = True) -> Gaussian:
        """Mean and covariance of a split's features; kept in $JEA_HOME/statistics for the next time."""
        view = CentredView(self.dataset(split), size=self.generator.img_size, flip=False)
        if len(view) < 2:
            raise DataError(f"{view.dataset.root}: split {split} has {len(view)} pictures; a distance needs at least 2")
        # A few pictures stand for all: a changed data set of the same size is noticed.
        some = np.stack([view.picture(int(i)) for i in np.linspace(0, len(view) - 1, 16)])
        key = {"data": self._data, "split": split, "pictures": len(view), "size": view.size,
               "checksum": zlib.crc32(some.tobytes()), "features": self.feature_network()[1]}
        name = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:16]
        path = jea_home() / "statistics" / f"{self._data['name']}-{name}.npz"
        if path.is_file():
            tensors, meta = load_npz(path)
            return Gaussian(tensors["mean"], tensors["covariance"], meta["pictures"])
        moments, size = Moments(), self.eval.batch_size
        chunks = [range(start, min(start + size, len(view))) for start in range(0, len(view), size)]
        batches = map_ordered(view.pictures, chunks, self.eval.num_workers)
        for pictures in progress_bar(batches, total=len(chunks), title=f"features of {split}", unit="batch",
                                     shown=progress):
            moments.update(self.features(pictures)[0])
        gaussian = moments.gaussian()
        path.parent.mkdir(parents=True, exist_ok=True)
        save_npz(path, {"mean": gaussian.mean, "covariance": gaussian.covariance}, key)
        return gaussian


def _noise(count: int, z_dim: int, seed: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(seed)).standard_normal((count, z_dim), np.float32)


def _in_turn(count: int, classes: int) -> np.ndarray:
    return np.arange(count, dtype=np.int32) % classes


def hinge_d(real, fake):
    """mean max(0, 1 - real) + mean max(0, 1 + fake), of scores (B,)."""
    return nn.relu(1 - real).mean() + nn.relu(1 + fake).mean()


def hinge_g(fake):
    """-mean fake, of scores (B,)."""
    return -fake.mean()
