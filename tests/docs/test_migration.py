"""The migration table covers the official API, and names what exists here."""

import dataclasses
import importlib
import re

import pytest
import transformers
from helpers.scripts import ROOT

import rfdetr_hf

PAGE = (ROOT / "docs" / "migration" / "from_rfdetr.md").read_text(encoding="utf-8")
OWNERS = {
    "args": rfdetr_hf.RFDETRTrainingArguments,
    "data_args": rfdetr_hf.DataArguments,
    "model_args": rfdetr_hf.ModelArguments,
    "config": rfdetr_hf.RFDETRConfig,
    "backbone": rfdetr_hf.RFDETRBackboneConfig,
    "model": rfdetr_hf.RFDETRForObjectDetection,
    "trainer": rfdetr_hf.RFDETRTrainer,
}
TRAIN_CONFIG = """
lr lr_encoder batch_size grad_accum_steps eval_batch_size pad_targets_to auto_batch_target_effective
auto_batch_max_targets_per_image auto_batch_ema_headroom epochs resume ema_decay ema_tau checkpoint_interval
skip_best_epochs smooth_alpha warmup_epochs lr_vit_layer_decay lr_component_decay drop_path cls_loss_coef
keypoint_flip_pairs keypoint_l1_loss_coef keypoint_findable_loss_coef keypoint_visible_loss_coef keypoint_nll_loss_coef
keypoint_oks_sigmas dataset_file square_resize_div_64 dataset_dir output_dir multi_scale expanded_scales use_ema
ema_update_interval eval_base_model eval_ema_only num_workers weight_decay amp_dtype best_model_metric early_stopping
early_stopping_patience early_stopping_min_delta early_stopping_use_ema progress_bar tensorboard wandb mlflow clearml
project run class_names run_test eval_max_dets eval_interval log_per_class_metrics eval_backend
eval_masks_head_resolution aug_config scale_jitter augmentation_backend save_dataset_grids notes accelerator devices
num_nodes strategy clip_max_norm seed sync_bn fp16_eval lr_scheduler lr_scheduler_kwargs lr_scheduler_interval
lr_scheduler_monitor optimizer optimizer_kwargs dont_save_weights train_log_sync_dist train_log_on_step
compact_train_metrics compute_train_metrics num_sanity_val_steps compute_val_loss compute_test_loss pin_memory
persistent_workers prefetch_factor pack_targets mask_point_sample_ratio mask_ce_loss_coef mask_dice_loss_coef
""".split()
MODEL_CONFIG = """
encoder two_stage num_queries num_select postprocess_trace_alpha bbox_reparam lite_refpoint_refine layer_norm amp
num_channels num_classes pretrain_weights device group_detr gradient_checkpointing compile cuda_graphs fused_optimizer
ia_bce_loss segmentation_head mask_downsample_ratio use_grouppose_keypoints keypoint_cross_attn inter_instance_kp_attn
grouppose_keypoint_dim_downscale dual_projector dual_projector_kp_only num_keypoints_per_class num_decoder_registers
backbone_lora freeze_encoder license model_name patch_size num_windows resolution positional_encoding_size
out_feature_indexes dec_layers hidden_dim sa_nheads ca_nheads dec_n_points projector_scale
""".split()
TRAINING_API = """
RFDETRModelModule RFDETRModelModule.on_fit_start RFDETRModelModule.on_train_batch_start RFDETRModelModule.training_step
RFDETRModelModule.validation_step RFDETRModelModule.test_step RFDETRModelModule.predict_step
RFDETRModelModule.configure_optimizers RFDETRModelModule.clip_gradients RFDETRModelModule.on_load_checkpoint
RFDETRDataModule RFDETRDataModule.class_names RFDETRDataModule.setup RFDETRDataModule.train_dataloader
RFDETRDataModule.val_dataloader RFDETRDataModule.test_dataloader build_trainer RFDETREMACallback BestModelCallback
RFDETREarlyStopping DropPathCallback COCOEvalCallback RFDETRCli
""".split()


def rows(title):
    section = re.search(rf"^## {title}$(.*?)(?=^## |\Z)", PAGE, re.S | re.M)[1]
    table = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table]


SECTIONS = re.findall(r"^## (.+)$", PAGE, re.M)[1:]
ALL = [row for title in SECTIONS for row in rows(title)]


def has(owner, name):
    fields = {field.name for field in dataclasses.fields(owner)} if dataclasses.is_dataclass(owner) else set()
    return name in fields or hasattr(owner, name) or name in owner.__init__.__code__.co_varnames


def exists(name):
    """Whether a code span of the column "here" is the name of something."""
    first, *rest = name.split(".")
    if "/" in name:
        return (ROOT / name).is_file()
    if name.startswith("rfdetr-hf "):
        return importlib.util.find_spec(f"rfdetr_hf.cli.{name.split()[1]}") is not None
    if first in OWNERS:
        return len(rest) == 1 and has(OWNERS[first], rest[0])
    if first == "rfdetr_hf":
        module, attribute = name.rsplit(".", 1)
        return hasattr(importlib.import_module(module), attribute)
    if first == "transformers":
        return has(getattr(transformers, rest[0]), rest[1])
    return first in rfdetr_hf.__all__ and all(hasattr(getattr(rfdetr_hf, first), each) for each in rest)


@pytest.mark.parametrize("row", ALL, ids=[row[0].strip("`") for row in ALL])
def test_what_a_row_names_exists(row):
    official, here, remark = row
    names = re.findall(r"`([^`]+)`", here)
    assert names or (here == "–" and remark), f"{official}: name a counterpart, or say why there is none"
    for name in names:
        assert exists(name), f"{official}: {name} does not exist"


def test_options_in_remarks_exist():
    for _, _, remark in ALL:
        for name in re.findall(r"`((?:args|config|backbone|data_args|model_args)\.(?!json)\w+)`", remark):
            assert exists(name), name


@pytest.mark.parametrize(
    ("title", "official"),
    [("TrainConfig", TRAIN_CONFIG), ("ModelConfig", MODEL_CONFIG), ("Training API", TRAINING_API)],
)
def test_the_official_api_is_covered(title, official):
    found = {re.sub(r"\(.*", "", row[0].strip("`")) for row in rows(title)}
    assert set(official) == found


def test_the_check_can_fail():
    wrong = ("args.epochs", "rfdetr_hf.Nothing", "tools/none.py", "Nothing", "model.nothing")
    assert not any(exists(name) for name in wrong)
