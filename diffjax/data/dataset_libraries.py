"""Image sets of the libraries tensorflow-datasets and Hugging Face's datasets; columns are chosen by their type."""

import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from diffjax.data.records import SET_DIRECTORY, Query, Record, Records, check_split, index_labels, slice_split
from diffjax.errors import MissingData, UserError, excerpt


def prepared_folder(directory: str, name: str, how: str) -> Any:
    """Returns the folder of the newest version of a set that tensorflow-datasets prepared.

    Args:
      directory: folder of prepared data sets.
      name: name of the set, and of its config after a slash.
      how: what the user should do if it is not prepared, for the message.

    Raises:
      MissingData: it is not prepared.
    """
    import tensorflow_datasets as tfds

    root = tfds.core.Path(directory).expanduser() / name
    prepared = [path.parent for path in root.glob("*/dataset_info.json")]
    # excludes incomplete preparations
    versions = [path for path in prepared if re.fullmatch(r"\d+\.\d+\.\d+", path.name)]
    if not versions:
        others = [path.name for path in root.parent.iterdir()] if root.parent.is_dir() else []
        similar = difflib.get_close_matches(root.name, others, n=1)
        proposal = f"did you mean {similar[0]!r}? Otherwise " if similar else ""
        raise MissingData(f"{name} is not prepared in {directory}: {proposal}{how}")
    return max(versions, key=lambda path: tfds.core.Version(path.name))


def open_builder(folder: Any, how: str) -> Any:
    """Returns the builder of a prepared set. Raises UserError if its description is damaged."""
    import tensorflow_datasets as tfds

    try:
        return tfds.builder_from_directory(folder)
    except Exception as error:  # damaged JSON files raise various exceptions
        reason = excerpt(f"{type(error).__name__}: {error}")
        raise UserError(f"{folder} is damaged ({reason}): delete it and {how}") from error


def open_split(builder: Any, split: str, how: str) -> Any:
    """Returns the records of a split of a prepared set, with random access.

    Raises:
      NotImplementedError: the set is not in the array_record format.
      ValueError: the set has no such split, or the split is empty.
      UserError: a file is missing, or has other records than the description of the set.
    """
    from array_record.python.array_record_module import ArrayRecordReader

    data = builder.as_data_source(split=split)
    for file in builder.info.splits[split].file_instructions:
        reader = ArrayRecordReader(str(file.filename))
        count = reader.num_records() if reader.ok() else 0
        if count != file.examples_in_shard:
            raise UserError(
                f"{file.filename}: is missing, damaged or ends early, as {count:,} of {file.examples_in_shard:,} "
                f"records can be read; delete {builder.data_path} and {how}"
            )
        reader.close()
    return data


def open_tfds(query: Query) -> Records:
    """Opens an image set of tensorflow-datasets that is prepared as array_record in `data.dir`.

    The image and label are its only Image and ClassLabel features, or those named "image" and "label"; the caption is
    the Text feature named "text" or "caption".

    Raises:
      MissingData: it is not prepared; the message has the command that prepares it.
      UserError: it has no image, no such split, or another file format.
    """
    import tensorflow_datasets as tfds

    command = f"pip install 'diffjax[tfds]' && tfds build {query.path} --file_format=array_record"
    how = f"prepare it with `{command} --data_dir={query.directory or 'DIR'}`"
    if not query.directory:
        raise MissingData(f"data.dir is not set: {query.name} is read from disk; {how}, then {SET_DIRECTORY}")
    builder = open_builder(prepared_folder(query.directory, query.path, how), how)
    name = f"{query.name} in {query.directory}"
    check_split(query.split, sorted(builder.info.splits, key=lambda split: split != "train"), name)
    features: Mapping[str, Any] = builder.info.features
    image = _column(features, tfds.features.Image, ("image",), name)
    if image is None:
        raise UserError(f"data.name={query.name}: has no image feature, but {', '.join(features)}; choose another set")
    label = _column(features, tfds.features.ClassLabel, ("label",), name)
    texts = [name for name, feature in features.items() if isinstance(feature, tfds.features.Text)]  # also file names
    caption = _named(texts, ("text", "caption"))
    try:
        data = open_split(builder, query.split, how)
    except NotImplementedError:
        raise UserError(f"{name} is not in the array_record format: {how}") from None
    except ValueError as error:
        raise UserError(
            f"data.split={query.split}: {excerpt(str(error))}; choose a part such as train[:1000]"
        ) from None

    def read(i: int) -> Record:
        values = data[i]
        text = values[caption].decode() if caption else None
        return Record(values[image], int(values[label]) if label else 0, text)

    names = tuple(features[label].names) if label else ()
    name_of = lambda i: f"{name} {query.split}:{i}"  # noqa: E731
    return Records(len(data), read, name_of, len(names), names, None, "prepare the data set again")


def open_hf(query: Query) -> Records:
    """Opens an image set of Hugging Face's datasets: a folder of `save_to_disk`, or a name for `load_dataset`.

    The image column has the type Image; the label is a ClassLabel or whole number named "label", and the caption a
    string named "text" or "caption". A name may have a configuration after a comma.

    Raises:
      UserError: the library is not installed, or the set cannot be loaded, has no image or no such split.
    """
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(
            f"data.name={query.name}: requires Hugging Face's datasets; install it with `pip install 'diffjax[hf]'`"
        ) from None
    datasets.utils.disable_progress_bars()
    folder = os.path.join(os.path.expanduser(query.directory), os.path.expanduser(query.path))
    try:
        if os.path.isdir(folder) and {"dataset_dict.json", "state.json"} & {*os.listdir(folder)}:
            loaded: Any = datasets.load_from_disk(folder)
        else:
            path, _, subset = query.path.partition(",")
            loaded = datasets.load_dataset(path, subset or None, cache_dir=query.directory or None)
    except Exception as error:  # the library raises various exceptions
        reason = excerpt(f"{type(error).__name__}: {error}")
        raise UserError(f"data.name={query.name}: cannot be loaded ({reason}); correct the path or name") from error
    splits = loaded if isinstance(loaded, Mapping) else {"train": loaded}
    data = splits[check_split(query.split, splits, f"data.name={query.name}")]
    features: Mapping[str, Any] = data.features
    image = _column(features, datasets.Image, ("image", "img"), query.name)
    if image is None:
        raise UserError(f"data.name={query.name}: has no image column, but {', '.join(features)}; choose another set")
    label = _column(features, datasets.ClassLabel, ("label",), query.name) or _named(features, ("label",))
    caption = _named(features, ("text", "caption"))
    data = data.select_columns([name for name in (image, label, caption) if name]).cast_column(
        image, datasets.Image(decode=False)
    )
    labels, num_classes, class_names = None, 0, ()
    if label is not None:
        values = data.with_format("arrow")[label]
        values = values.to_pylist() if hasattr(values, "to_pylist") else [x.as_py() for x in values]
        if isinstance(features[label], datasets.ClassLabel):
            class_names = tuple(features[label].names)
            labels = np.array([-1 if value is None else value for value in values], np.int32)
            num_classes = len(class_names)
        else:
            try:
                labels, num_classes, class_names = index_labels(values)
            except ValueError as error:
                raise UserError(f"data.name={query.name}: column {label}: {error}; correct it") from error

    def read(i: int) -> Record:
        row = data[i]
        if missing := [name for name in (image, caption) if name and row[name] is None]:
            raise UserError(f"{query.name}:{i}: has no {missing[0]}; remove the row")
        content = row[image]["bytes"]
        if content is None:
            with open(row[image]["path"], "rb") as file:
                content = file.read()
        return Record(content, 0 if labels is None else int(labels[i]), str(row[caption]) if caption else None)

    name_of, remedy = lambda i: f"{query.name}:{i}", "prepare the data set again"
    records = Records(len(data), read, name_of, num_classes, class_names, labels, remedy)
    return slice_split(records, query.split)


def _column(features: Mapping[str, Any], kind: type, names: Sequence[str], where: str) -> str | None:
    """Returns the feature of a type: the one among `names`, or the only one; None: no feature has the type.

    Raises:
      UserError: there are several, and none has one of the names.
    """
    columns = [name for name, feature in features.items() if isinstance(feature, kind)]
    preferred = [name for name in names if name in columns]
    if not preferred and len(columns) > 1:
        raise UserError(f"{where}: has several features of kind {kind.__name__}: {', '.join(columns)}; use another set")
    return (preferred or columns or [None])[0]


def _named(features: Iterable[str], names: Sequence[str]) -> str | None:
    return next((name for name in names if name in features), None)
