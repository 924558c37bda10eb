"""LabelMe files and COCO instances as --polygon: what is read, what is left out, and what is refused in which words."""

from __future__ import annotations

import base64
import io
import json
import tempfile
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vosrt.errors import MaskError
from vosrt.types import U8Array
from vosrt.video.base import Frame, SourceInfo
from vosrt.video.polygons import Drawing, read_polygons
from vosrt.video.prompts import Prompts, load_annotations
from vosrt.video.rle import encode

WIDTH, HEIGHT = 24, 16
SQUARE, OTHER = [[2, 2], [6, 2], [6, 6], [2, 6]], [[10, 2], [14, 2], [14, 6], [10, 6]]


def area(left: int, top: int, right: int, bottom: int) -> U8Array:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[top : bottom + 1, left : right + 1] = 1
    return mask


FIRST, SECOND = area(2, 2, 6, 6), area(10, 2, 14, 6)


def read(tmp_path: Path, document: Any, **frame: Any) -> Drawing:
    path = tmp_path / "objects.json"
    path.write_text(json.dumps(document), "utf-8")
    return read_polygons(path, WIDTH, HEIGHT, **frame)


def labelme(*shapes: dict[str, Any], **fields: Any) -> dict[str, Any]:
    size = {"imageWidth": WIDTH, "imageHeight": HEIGHT}
    head = {"version": "5.4.1", "flags": {}, "imagePath": "00000.jpg", "imageData": "aGVsbG8="}
    return {**head, **size, "shapes": list(shapes), **fields}


def shape(points: Any, kind: str | None = "polygon", label: str = "ball", **fields: Any) -> dict[str, Any]:
    return {"label": label, "points": points, "group_id": None, "shape_type": kind, "flags": {}, **fields}


def coco(*annotations: dict[str, Any], **fields: Any) -> dict[str, Any]:
    image = {"id": 5, "file_name": "00000.jpg", "width": WIDTH, "height": HEIGHT}
    listed = [{"id": i + 1, "image_id": 5, "category_id": 9, "iscrowd": 0, **a} for i, a in enumerate(annotations)]
    return {"images": [image], "categories": [{"id": 9, "name": "ball"}], "annotations": listed, **fields}


def flat(points: Any) -> list[float]:
    """A rectangle of pixels as COCO writes it: from the left edge of the first to the right edge of the last."""
    right, bottom = (max(values) for values in zip(*points, strict=True))
    return [value for x, y in points for value in (x + (x == right), y + (y == bottom))]


@given(points=st.lists(st.tuples(st.floats(-2, 26), st.floats(-2, 18)), min_size=3, max_size=9))
def test_coco_polygons_hold_the_pixels_whose_centres_lie_in_them(points: list[tuple[float, float]]) -> None:
    """Every centre is tested by itself; the convention is that of the COCO tools."""
    with tempfile.TemporaryDirectory() as folder:
        document = coco({"segmentation": [[0, 0, 1, 0, 1, 1, 0, 1], [v for point in points for v in point]]})
        labels = read(Path(folder), document).labels
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[0, 0] = True
    for row, column in np.ndindex(HEIGHT, WIDTH):
        x, y, crossings = column + 0.5, row + 0.5, 0
        for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[0]], strict=True):
            crossings += (y0 <= y) != (y1 <= y) and x0 + (y - y0) * ((x1 - x0) / (y1 - y0)) <= x
        expected[row, column] |= crossings % 2 == 1
    np.testing.assert_array_equal(labels > 0, expected)


def test_labelme_shapes_are_objects_of_their_own(tmp_path: Path) -> None:
    drawing = read(tmp_path, labelme(shape(SQUARE), shape(OTHER)))
    np.testing.assert_array_equal(drawing.labels, FIRST + 2 * SECOND)
    assert (drawing.numbered, drawing.warnings) == (False, ())


def test_labelme_shapes_of_a_group_are_one_object(tmp_path: Path) -> None:
    drawing = read(tmp_path, labelme(shape(SQUARE, group_id=3), shape(OTHER, group_id=3), shape(OTHER, group_id=4)))
    np.testing.assert_array_equal(drawing.labels, FIRST + 2 * SECOND)
    drawing = read(tmp_path, labelme(shape(SQUARE, group_id=3), shape(OTHER, group_id=3, label="box")))
    np.testing.assert_array_equal(drawing.labels, FIRST + 2 * SECOND)


@pytest.mark.parametrize(
    ("points", "kind"),
    [
        ([[2, 2], [6, 6]], "rectangle"),
        ([[6, 6], [2, 2]], "rectangle"),
        ([[6, 2], [2, 6]], "rectangle"),
        (SQUARE, "rectangle"),
        (SQUARE, "rotation"),
        (SQUARE, None),
    ],
)
def test_labelme_rectangles(tmp_path: Path, points: Any, kind: str | None) -> None:
    np.testing.assert_array_equal(read(tmp_path, labelme(shape(points, kind))).labels, FIRST)


def test_labelme_circles_are_a_centre_and_a_point_of_the_rim(tmp_path: Path) -> None:
    labels = read(tmp_path, labelme(shape([[12, 8], [12, 13]], "circle"))).labels
    assert (labels[8, 7], labels[8, 17], labels[3, 12], labels[13, 12], labels[4, 8]) == (1, 1, 1, 1, 0)
    assert 75 <= labels.sum() <= 100


@pytest.mark.parametrize(("x", "y"), [(2, 2), (-2, -2), (20, 12)])
def test_labelme_masks_lie_where_their_first_point_is(tmp_path: Path, x: int, y: int) -> None:
    data = io.BytesIO()
    Image.fromarray(np.ones((5, 5), bool)).save(data, "PNG")
    item = shape([[x, y], [x + 4, y + 4]], "mask", mask=base64.b64encode(data.getvalue()).decode())
    expected = area(max(x, 0), max(y, 0), x + 4, y + 4)
    np.testing.assert_array_equal(read(tmp_path, labelme(item)).labels, expected)


def test_labelme_shapes_without_area_are_left_out_and_named(tmp_path: Path) -> None:
    drawing = read(tmp_path, labelme(shape([[3, 3]], "point", "nose"), shape(OTHER), shape(SQUARE, "linestrip")))
    np.testing.assert_array_equal(drawing.labels, SECOND)
    assert "shape 1 (nose) is a point, which has no area and is left out" in drawing.warnings[0]


def test_coco_polygons_and_both_run_length_encodings(tmp_path: Path) -> None:
    third = area(16, 8, 20, 12)
    runs = np.diff(np.flatnonzero(np.diff(third.T.reshape(-1), prepend=0, append=0)), prepend=0)
    counts = [*runs.tolist(), int(WIDTH * HEIGHT - runs.sum())]
    drawing = read(
        tmp_path,
        coco(
            {"segmentation": [flat(SQUARE)]},
            {"segmentation": {"size": [HEIGHT, WIDTH], "counts": encode(SECOND > 0)}},
            {"segmentation": {"size": [HEIGHT, WIDTH], "counts": counts}},
        ),
    )
    np.testing.assert_array_equal(drawing.labels, FIRST + 2 * SECOND + 3 * third)
    assert (drawing.numbered, drawing.warnings) == (False, ())


def test_coco_parts_of_an_object_are_united(tmp_path: Path) -> None:
    drawing = read(tmp_path, coco({"segmentation": [flat(SQUARE), flat(OTHER)]}))
    np.testing.assert_array_equal(drawing.labels, FIRST + SECOND)


def test_coco_results_and_single_images(tmp_path: Path) -> None:
    items = [{"image_id": 7, "category_id": 1, "score": 0.9, "segmentation": [flat(SQUARE)]}]
    np.testing.assert_array_equal(read(tmp_path, items).labels, FIRST)
    image = {"image_id": 7, "width": WIDTH, "height": HEIGHT, "file_name": "sa_7.jpg"}
    np.testing.assert_array_equal(read(tmp_path, {"image": image, "annotations": items}).labels, FIRST)


def test_run_length_encodings_alone(tmp_path: Path) -> None:
    for counts in (encode(FIRST > 0), [34, 5, 11, 5, 11, 5, 11, 5, 11, 5, WIDTH * HEIGHT - 103]):
        np.testing.assert_array_equal(read(tmp_path, {"size": [HEIGHT, WIDTH], "counts": counts}).labels, FIRST)
    both = [{"size": [HEIGHT, WIDTH], "counts": encode(each > 0)} for each in (FIRST, SECOND)]
    np.testing.assert_array_equal(read(tmp_path, both).labels, FIRST + 2 * SECOND)


def test_sizes_may_be_text(tmp_path: Path) -> None:
    document = coco({"segmentation": {"size": [HEIGHT, WIDTH], "counts": encode(FIRST > 0)}})
    document["images"][0].update(width=str(WIDTH), height=str(HEIGHT))
    np.testing.assert_array_equal(read(tmp_path, document).labels, FIRST)


def test_coco_chooses_the_image_of_the_frame(tmp_path: Path) -> None:
    names = ["clip/frame_000000.png", "clip/frame_000007.png", "Vögel_7.png"]
    document = coco(
        {"segmentation": [flat(SQUARE)], "image_id": 1},
        {"segmentation": [flat(OTHER)], "image_id": 2},
        images=[
            {"id": i, "file_name": name, "width": WIDTH, "height": HEIGHT} for i, name in enumerate(names[:2], start=1)
        ],
    )
    np.testing.assert_array_equal(read(tmp_path, document, frame=0).labels, FIRST)
    np.testing.assert_array_equal(read(tmp_path, document, frame=7).labels, SECOND)
    with pytest.raises(MaskError, match=r"describes 2 images \(clip/frame_000000.png.* 0 are named like frame 3"):
        read(tmp_path, document, frame=3)
    document["images"][0]["file_name"] = unicodedata.normalize("NFD", names[2])
    np.testing.assert_array_equal(read(tmp_path, document, frame=0, stem="Vögel_7").labels, FIRST)


def test_coco_annotations_without_outline_and_crowds_are_named(tmp_path: Path) -> None:
    drawing = read(
        tmp_path, coco({"bbox": [1, 2, 3.4, 4], "segmentation": []}, {"segmentation": [flat(OTHER)], "iscrowd": 1})
    )
    np.testing.assert_array_equal(drawing.labels, SECOND)
    assert "annotation 1 has no outline and is left out (--box 1,2,3,4 would follow it)" in drawing.warnings[0]
    assert "1 of 1 objects are marked as crowd" in drawing.warnings[1]


def test_points_beyond_the_frame_are_cut_off(tmp_path: Path) -> None:
    beyond = [[10, 2], [30, 2], [30, 6], [10, 6]]
    expected = area(10, 2, WIDTH - 1, 6)
    np.testing.assert_array_equal(read(tmp_path, labelme(shape(beyond))).labels, expected)
    np.testing.assert_array_equal(read(tmp_path, coco({"segmentation": [flat(beyond)]})).labels, expected)


def test_an_object_that_another_one_covers_is_named(tmp_path: Path) -> None:
    drawing = read(tmp_path, labelme(shape([[3, 3], [5, 3], [5, 5]]), shape(SQUARE)))
    assert set(np.unique(drawing.labels)) == {0, 2}
    assert "object 1 has no pixel of its own in the frame" in drawing.warnings[0]


RLE = {"size": [HEIGHT, WIDTH], "counts": encode(FIRST > 0)}


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (labelme(shape(SQUARE), imageWidth=640, imageHeight=480), "drawn on 640×480 but the frames are 24×16"),
        (labelme(), "it holds no shapes; expected a polygon, rectangle, circle or mask"),
        (labelme(shape([[3, 3]], "point", "nose")), r"shape 1 \(nose\) is a point, which has no area; expected"),
        (labelme(shape([[3, 3]], "cuboid")), "is of the unknown type 'cuboid'"),
        (labelme(shape([[3, 3]], "rectangle")), "has no two points"),
        (labelme(shape([[3, 3], [5, 5]])), "has a polygon that is not three or more points"),
        (labelme(shape([[3, 3], [5, 5], [3, 900]])), r"the point \(3, 900\) outside the frame"),
        (labelme(shape([[3, 3], [5, 5]], "mask")), r"the mask of shape 1 \(ball\) cannot be read"),
        (labelme(shape([[3, 3], [5, 5]], "mask", mask="aGVsbG8=")), r"the mask of shape 1 \(ball\) cannot be read"),
        ({"shapes": ["ball"]}, "shape 1 is no shape of LabelMe"),
        (labelme(shape([[25, 17], [30, 17], [30, 20]])), "no object has a pixel in the frame"),
        (coco(), "has no annotation of this frame"),
        (coco({"segmentation": [flat(SQUARE)], "image_id": 6}), "has no annotation of this frame"),
        (coco({"bbox": [1, 2, 3, 4]}), r"annotation 1 has no outline \(--box 1,2,3,4 would follow it\); expected poly"),
        (coco({"segmentation": [[1, 2, 3, 4, 5]]}), "not three or more points"),
        (coco({"segmentation": ["1,2"]}), r"annotation 1 has no list of polygons"),
        (coco({"segmentation": {**RLE, "size": [WIDTH, HEIGHT]}}), "drawn on 16×24 but the frames are 24×16"),
        (coco({"segmentation": {**RLE, "counts": RLE["counts"][:-1]}}), "run-length encoding of annotation 1 cannot"),
        (coco({"segmentation": {**RLE, "counts": [1 << 62] * 4 + [384]}}), "run-length encoding of annotation 1"),
        (coco({"segmentation": {**RLE, "counts": [1 << 80]}}), "run-length encoding of annotation 1"),
        (coco({"segmentation": {**RLE, "counts": [[384]]}}), "run-length encoding of annotation 1"),
        (coco({"segmentation": {"size": [HEIGHT, WIDTH]}}), "run-length encoding of annotation 1"),
        (coco(*[{"segmentation": [flat(SQUARE)]}] * 256), "holds 256 objects; expected at most 255"),
        ({"features": []}, "names no objects; expected .* LabelMe file or COCO instances"),
        ({**RLE, "size": [WIDTH, HEIGHT]}, "drawn on 16×24 but the frames are 24×16"),
        ({**RLE, "counts": RLE["counts"][:-1]}, "run-length encoding of annotation 1 cannot"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path: Path, document: Any, words: str) -> None:
    with pytest.raises(MaskError, match=words):
        read(tmp_path, document)


@pytest.mark.parametrize(
    ("document", "program"),
    [
        ({"version": 0, "tags": [], "tracks": [], "shapes": [{"type": "polygon", "points": [1, 2, 3, 4]}]}, "CVAT"),
        ([{"version": 0, "tags": [], "shapes": [{"type": "polygon", "points": [1, 2, 3, 4]}], "tracks": []}], "CVAT"),
        ({"info": {}, "categories": {}, "items": [{"id": "a", "annotations": []}]}, "Datumaro"),
        ([{"id": 1, "data": {"image": "a.png"}, "annotations": [{"id": 1, "result": []}]}], "Label Studio"),
        ({"id": 1, "annotations": [{"id": 1, "result": [{"type": "polygonlabels"}]}]}, "Label Studio"),
        ([{"image": "a.png", "label": [{"points": [[1, 2]], "original_width": 24}]}], "Label Studio"),
        ({"_via_settings": {}, "_via_img_metadata": {}}, "VIA"),
        ({"a.png123": {"filename": "a.png", "size": 123, "regions": []}}, "VIA"),
        ({"size": {"height": 16, "width": 24}, "objects": [{"geometryType": "polygon", "points": {}}]}, "Supervisely"),
        ([{"data_row": {"id": "a"}, "projects": {}}], "Labelbox"),
        ({"version": "2.0", "item": {"name": "a"}, "annotations": [{"polygon": {"paths": []}}]}, "V7 Darwin"),
        ({"videos": [{"id": 1}], "annotations": [{"video_id": 1, "segmentations": [None]}]}, "YouTube-VIS"),
        ({"images": [{"id": 1}], "annotations": [{"image_id": 1, "segments_info": []}]}, "COCO panoptic"),
        ({"type": "FeatureCollection", "features": []}, "GeoJSON"),
    ],
)
def test_files_of_other_programs_are_named(tmp_path: Path, document: Any, program: str) -> None:
    """They are not mistaken for LabelMe or COCO, whose keys some of them use."""
    with pytest.raises(MaskError, match=f"is a file of {program}.*expected its export as COCO, or LabelMe"):
        read(tmp_path, document)


def test_xml_is_named(tmp_path: Path) -> None:
    path = tmp_path / "annotations.xml"
    path.write_text('<?xml version="1.0"?><annotations/>')
    with pytest.raises(MaskError, match="is XML, which is not read; expected LabelMe's JSON, or COCO"):
        read_polygons(path, WIDTH, HEIGHT)


class Folder:
    """A source of three frames whose names are those of images."""

    info = SourceInfo("frames", WIDTH, HEIGHT, 25.0, 3, stems=("00000", "00001", "00002"))
    first = Frame(np.zeros((HEIGHT, WIDTH, 3), np.uint8), 0, 0.0, "00000")
    warnings: tuple[str, ...] = ()

    def __iter__(self) -> Any:
        yield self.first

    def close(self) -> None:
        pass


def test_objects_of_several_files_take_the_next_free_numbers(tmp_path: Path) -> None:
    for name, document in {"a": labelme(shape(SQUARE)), "b": coco({"segmentation": [flat(OTHER)]})}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    texts = (f"{tmp_path}/a.json", f"2:{tmp_path}/b.json")
    annotations = load_annotations(Prompts(polygons=texts), Folder())
    np.testing.assert_array_equal(annotations.masks[0], FIRST)
    np.testing.assert_array_equal(annotations.masks[2], 2 * SECOND)


def test_a_mask_without_background_is_named(tmp_path: Path) -> None:
    """Programs that number their classes from 1, such as ilastik, give the background a number, too."""
    for name, pixels, said in (
        ("full", FIRST + 1, True),
        ("usual", FIRST * 2, False),
        ("black and white", FIRST * 255, False),
    ):
        path = tmp_path / f"{name}.png"
        Image.fromarray(pixels).save(path)
        found = load_annotations(Prompts(masks=[str(path)]), Folder()).warnings
        assert any("has no 0, so that every pixel belongs to an object" in line for line in found) == said
