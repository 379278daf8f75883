import json

import numpy as np
import pytest
import yaml
from datasets import concatenate_datasets
from helpers.coco_points import POINTS

from rfdetr_hf import (
    DataArguments,
    KeypointSchema,
    audit_dataset,
    load_detection_dataset,
    make_shapes_dataset,
    parse_arguments,
)
from rfdetr_hf.data.errors import DetectionDataError
from rfdetr_hf.data.keypoints import COCO_KEYPOINTS, COCO_SIGMAS, ClassKeypoints, infer_flip_pairs, pairs_of_permutation
from rfdetr_hf.data.schema import decode_image, keypoint_schema


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (["nose", "left_eye", "right_eye"], ((1, 2),)),
        (["RightHand", "tail", "LeftHand"], ((0, 2),)),
        (["eye-left", "ear right", "eye-right", "ear left"], ((0, 2), (1, 3))),
        (["front_left_paw", "front_right_paw", "back_left_paw", "back_right_paw"], ((0, 1), (2, 3))),
        (["nose", "tail"], None),
        (["left_eye", "nose"], None),
        (["left_of_right", "right_of_left"], None),
        (["brightness", "leftover"], None),
        (["tip"], ()),
        ([], ()),
    ],
)
def test_flip_pairs_from_names(names, pairs):
    assert infer_flip_pairs(names) == pairs


def test_coco_defaults_and_others():
    person = ClassKeypoints.of(COCO_KEYPOINTS)
    assert person.sigmas == COCO_SIGMAS and person.flip_pairs == tuple((i, i + 1) for i in range(1, 17, 2))
    assert ClassKeypoints.of(["a", "b"]).sigmas == (0.1, 0.1)


def test_schema_of_classes_with_different_keypoints():
    triangle = ClassKeypoints.of(["top", "right", "left"], [(0, 1)], sigmas=[0.1, 0.2, 0.3])
    schema = KeypointSchema((ClassKeypoints(), triangle, ClassKeypoints.of(["tip"])))
    assert schema.num_keypoints_per_class == [0, 3, 1] and schema.num_keypoints == 3
    assert schema.flip_index.tolist() == [[0, 1, 2], [0, 2, 1], [0, 1, 2]]
    assert schema.sigmas.tolist() == [[0.1, 0.1, 0.1], [0.1, 0.2, 0.3], [0.1, 0.1, 0.1]]
    assert KeypointSchema.from_dict(json.loads(json.dumps(schema.to_dict()))) == schema
    unknown = KeypointSchema((triangle, ClassKeypoints.of(["nose", "tail"])))
    assert unknown.flip_index is None and KeypointSchema.from_dict(unknown.to_dict()).flip_index is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"names": ["a", "a"]}, "not distinct"),
        ({"names": ["a", "b"], "sigmas": [0.1]}, "one positive number for each of 2"),
        ({"names": ["a"], "sigmas": [0.0]}, "positive numbers, one for each keypoint"),
        ({"names": ["a", "b"], "skeleton": [(0, 2)]}, "skeleton .* beyond the 2"),
        ({"names": ["a", "b"], "flip_pairs": [(0, 1), (1, 0)]}, "name a keypoint twice"),
        ({"names": ["a", "b"], "flip_pairs": [(0,)]}, "not pairs"),
    ],
)
def test_faults_of_a_schema(fields, message):
    with pytest.raises(ValueError, match=message):
        ClassKeypoints.of(**fields)


def test_faults_of_a_written_schema():
    with pytest.raises(ValueError, match=r"label 1: has \['sigmas'\], needs names"):
        KeypointSchema.from_dict({"classes": [{"names": []}, {"sigmas": []}]})
    with pytest.raises(ValueError, match=r"label 0: has \['flips', 'names'\]"):
        KeypointSchema.from_dict({"classes": [{"names": [], "flips": []}]})
    with pytest.raises(ValueError, match="label 0: flip_pairs .* beyond the 1 keypoints"):
        KeypointSchema.from_dict({"classes": [{"names": ["a"], "flip_pairs": [[0, 1]]}]})
    with pytest.raises(ValueError, match="classes is missing or empty"):
        KeypointSchema.from_dict({})
    with pytest.raises(ValueError, match=r"fields \['person'\] are unknown"):
        KeypointSchema.from_dict({"classes": [{"names": []}], "person": {}})
    with pytest.raises(ValueError, match="partners"):
        pairs_of_permutation([1, 2, 0], 3)
    assert pairs_of_permutation([0, 2, 1], 3) == ((1, 2),)


# ------------------------------------------------------------------------------------------------------- sources


def test_a_given_schema_replaces_the_sources(coco_points):
    given = KeypointSchema((ClassKeypoints(), ClassKeypoints.of(["a", "b", "c"], sigmas=[1, 2, 3])))
    assert keypoint_schema(coco_points(POINTS, None, None, keypoint_schema=given)) == given
    assert keypoint_schema(coco_points(POINTS, None, None, keypoint_schema=given.to_dict())) == given
    other = KeypointSchema((ClassKeypoints.of(["a"]),))
    with pytest.raises(DetectionDataError, match=r"keypoint_schema has \[1\] .*\['cat', 'dog'\] have \[0, 3\]"):
        coco_points(POINTS, None, None, keypoint_schema=other)


def test_schema_survives_everything(coco_points, tmp_path):
    source = coco_points(POINTS, None, None)
    schema = keypoint_schema(source)
    source.save_to_disk(tmp_path / "saved")
    (tmp_path / "parquet").mkdir()
    source.to_parquet(tmp_path / "parquet" / "train-00000-of-00001.parquet")
    ways = {
        "select": source.select([1, 0]).select([1]),
        "shuffle": source.shuffle(seed=0),
        "map": source.map(lambda row: {"width": row["width"] * 2}),
        "concatenate": concatenate_datasets([source, source]),
        "saved": load_detection_dataset(tmp_path / "saved", task="keypoints")["train"],
        "parquet": load_detection_dataset(tmp_path / "parquet", task="keypoints")["train"],
        "split": load_detection_dataset(source, task="keypoints", validation_split=0.5)["validation"],
    }
    for way, dataset in ways.items():
        assert keypoint_schema(dataset) == schema, way
    assert ways["parquet"]["objects"] == source["objects"]


def test_keypoints_of_hub_data_sets(tmp_path, write_image, caplog):
    write_image(tmp_path / "train" / "a.png", (64, 48))
    triples = [[[1, 2, 2], [3, 4, 1]], []]
    objects = {"bbox": [[1, 1, 9, 9], [2, 2, 9, 9]], "categories": [0, 1], "keypoints": triples}
    file = tmp_path / "train" / "metadata.jsonl"
    file.write_text(json.dumps({"file_name": "a.png", "objects": objects}))
    train = load_detection_dataset(tmp_path, task="keypoints")["train"]
    assert train[0]["objects"]["keypoints"] == [[1, 2, 2, 3, 4, 1], [0] * 6]
    assert keypoint_schema(train).num_keypoints_per_class == [2, 2] and "has no names" in caplog.text


def test_synthetic_keypoints_lie_where_the_shape_is_painted():
    dataset = make_shapes_dataset(60, task="keypoints")
    schema, seen = keypoint_schema(dataset), set()
    assert schema.num_keypoints_per_class == [1, 4, 3] and schema.flip_index.tolist()[1] == [1, 0, 3, 2]
    for row in dataset:
        pixels = np.asarray(decode_image(row)).astype(int)
        objects = row["objects"]
        for points, label, (x, y, side, _) in zip(
            objects["keypoints"], objects["category"], objects["bbox"], strict=True
        ):
            middle = np.array([x + side / 2, y + side / 2])
            for px, py, v in np.reshape(points, (-1, 3))[: schema.num_keypoints_per_class[label]]:
                assert x <= px <= x + side and y <= py <= y + side
                # A pixel further in than the point has the shape's colour, unless a later shape hides it.
                column, line = np.floor([px, py] + 0.06 * (middle - [px, py])).astype(int).clip(0, 95)
                centre = pixels[int(middle[1]), int(middle[0])]
                same = np.abs(pixels[line, column] - centre).max() == 0
                seen.add((int(v), bool(same)))
                lone = len(objects["id"]) == 1
                assert not lone or (v == 2 and same)
    assert (2, True) in seen and any(v == 1 for v, _ in seen)


def test_coco_person(data_root):
    file = data_root / "coco_person" / "person_keypoints.json"
    annotations = {a["id"]: a for a in json.loads(file.read_text())["annotations"]}
    train = load_detection_dataset(data_root / "coco_person", task="keypoints")["train"]
    assert keypoint_schema(train).classes[0] == ClassKeypoints.of(
        COCO_KEYPOINTS, keypoint_schema(train).classes[0].skeleton
    )
    assert len(keypoint_schema(train).classes[0].skeleton) == 19
    found = {i: k for o in train["objects"] for i, k in zip(o["id"], o["keypoints"], strict=True)}
    assert {i: [float(v) for v in a["keypoints"]] for i, a in annotations.items()} == found
    assert audit_dataset(train).keypoint_objects == sum(a["num_keypoints"] > 0 for a in annotations.values()) == 12


# --- given on the command line


GIVEN = {"classes": [{"names": []}, {"names": ["tip", "a", "b"], "flip_pairs": [[1, 2]], "sigmas": [0.05, 0.1, 0.1]}]}


@pytest.mark.parametrize("form", ["json", "flow yaml", "file", "options"])
def test_a_schema_of_the_command_line_reaches_the_data(coco_points, tmp_path, form):
    (tmp_path / "schema.yaml").write_text(yaml.safe_dump(GIVEN))
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"task": "keypoints", "keypoint_schema": GIVEN}))
    words = {
        "json": ["--task", "keypoints", "--keypoint_schema", json.dumps(GIVEN)],
        "flow yaml": ["--task", "keypoints", "--keypoint_schema", yaml.safe_dump(GIVEN, default_flow_style=True)],
        "file": ["--task", "keypoints", "--keypoint_schema", str(tmp_path / "schema.yaml")],
        "options": ["--config", str(tmp_path / "run.yaml")],
    }
    (args,) = parse_arguments((DataArguments,), words[form])
    options = args.load_options("keypoints")
    train = coco_points(POINTS, None, None, task=options["task"], keypoint_schema=options["keypoint_schema"])
    tip = keypoint_schema(train).classes[1]
    assert (tip.names, tip.flip_pairs, tip.sigmas) == (("tip", "a", "b"), ((1, 2),), (0.05, 0.1, 0.1))


@pytest.mark.parametrize(
    ("schema", "task", "message"),
    [
        ("none.yaml", "keypoints", "'none.yaml' is neither a mapping .* nor a file"),
        ("{classes: [", "keypoints", "not valid JSON or YAML"),
        (GIVEN, "detection", "keypoint_schema is for task=keypoints, and task is detection"),
    ],
)
def test_faults_of_a_schema_of_the_command_line(schema, task, message):
    with pytest.raises(ValueError, match=message):
        DataArguments(task=task, keypoint_schema=schema)
