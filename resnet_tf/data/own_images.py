"""A user's own images by what the commands call them: folder:PATH and list:TRAIN[,[VALIDATION][,TEST]]."""

from collections.abc import Sequence

from resnet_tf.data.dataset import is_own
from resnet_tf.data.folder import read_folder
from resnet_tf.data.image_files import ImageFiles
from resnet_tf.data.listfile import read_list
from resnet_tf.errors import UserError

_FORMS = "folder:PATH and list:TRAIN.txt[,[VALID.txt][,TEST.txt]]"


def find_own(dataset: str, class_names: Sequence[str] | None = None) -> dict[str, ImageFiles]:
    """Find the images that folder:PATH or list:… stands for, by split, as `read_folder` and `read_list` do.

    Raises:
        UserError: the name has no such form, or what it names cannot be used.
    """
    kind, _, place = dataset.partition(":")
    if not is_own(dataset) or not place.strip():
        raise UserError(f"{dataset!r} names no images; the forms are {_FORMS}")
    if kind == "folder":
        return read_folder(place, class_names)
    lists = [path.strip() for path in place.split(",")]
    if len(lists) > 3 or not lists[0] or not lists[-1]:
        raise UserError(
            f"{dataset!r} names {len(lists)} lists, or an empty one; the form is {_FORMS.split(' and ')[1]}"
        )
    validation, test = (*lists[1:], "", "")[:2]
    return read_list(lists[0], validation or None, test or None, class_names)
