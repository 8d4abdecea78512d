"""Every setting there is, with its default and its meaning."""

from ml_collections import ConfigDict


def default_config() -> ConfigDict:
    """Returns every setting with its default; a config file changes what it needs.

    The defaults are the paper's RetinaNet-50 on COCO files at 600 px (Lin et al. 2017, arXiv 1708.02002).
    """
    config = ConfigDict()
    config.seed = 0
    # Devices made of a CPU's cores, over which batches are split, where there is no accelerator and batch sizes allow
    # it. Small models are faster on two, large ones on one (docs/performance.md). Only rounding depends on it.
    config.cpu_devices = 1

    # Every device works on images of its own. `model` devices share one copy of the optimiser's state and the averaged
    # weights, each holds a part (ZeRO); of the weights, only arrays of at least `large` numbers are split.
    config.mesh = ConfigDict({"model": 1, "large": 2**24})

    data = config.data = ConfigDict()
    data.source = "coco"  # 'coco' (JSON), 'voc' (XML), 'tfds' or 'shapes'
    data.root = ""  # paths of the splits are relative to it
    for split in ("train", "val", "test"):
        # coco: images folder and annotation file. voc: JPEGImages and Annotations folders, and as `name` an image list.
        # tfds and shapes: `name` is the split, such as 'train' or 'train[:80%]'.
        # limit: only the first so many images; 0: all.
        data[split] = ConfigDict({"images": "", "annotations": "", "name": "", "limit": 0})
    data.classes = ()  # voc: the class names in label order; () takes those of the training split
    data.tfds_name = ""  # tfds: such as 'coco/2017', prepared under `root`
    data.shapes = ConfigDict(
        {
            "num_train": 2000,
            "num_val": 200,
            "num_test": 300,
            "height": 160,
            "width": 160,
            "num_classes": 5,
            "objects": 12,  # at most, on an image
            "typical_colour": 0.97,  # share of objects with the colour of their class; at 0 only the form tells
            "seed": 0,
        }
    )
    data.pixel_mean = (123.675, 116.28, 103.53)  # subtracted, in 0..255, for the channels in `channel_order`
    data.pixel_std = (58.395, 57.12, 57.375)  # divides
    data.channel_order = "rgb"  # in which the network takes the channels; or 'bgr'
    data.image_size = (600, 600)  # height, width: images are resized to fit and padded
    # Rows for the boxes of an image; 0: as many as the fullest training image has, with mosaic four times and with
    # mixup twice as many. Where there are more boxes, the largest stay, and that is reported.
    data.max_boxes = 0
    data.num_threads = 0  # that read images; 0: as many as there are cores
    data.timeout = 600.0  # seconds; data that takes longer is an error: a file hangs
    # A folder for the decoded images, three bytes a pixel, so that no epoch but the first decodes; one for each data
    # set, in memory or on a fast disk; '': none. They are kept resized unless `augment` changes scale or colours.
    data.cache = ""

    augment = config.augment = ConfigDict()  # docs/augmentation.md
    augment.horizontal_flip = 0.5  # probability
    augment.vertical_flip = 0.0
    augment.scale = (1.0, 1.0)  # range of the random scale, relative to the size that fits; above 1 crops
    augment.min_visible = 0.25  # a box of which less than this is left after cropping is dropped
    augment.brightness = 0.0  # 0.2: factor from 0.8 to 1.2; likewise contrast and saturation
    augment.contrast = 0.0
    augment.saturation = 0.0
    augment.hue = 0.0  # 0.1: up to 0.1 of a turn
    # Multi-scale: pixels of which the shorter side gets one at random, such as (640, 672, 704, 736, 768, 800), unless
    # the longer side would be more than `longest_side` or not fit data.image_size; (): `scale` instead.
    augment.short_sides = ()
    augment.longest_side = 1333
    augment.ssd_expand = 0.0  # probability of SSD's zoom-out
    augment.ssd_expand_max = 4.0  # its largest factor
    augment.ssd_crop = 0.0  # probability of SSD's random crop
    augment.mosaic = 0.0  # probability of a mosaic of four images
    augment.mosaic_scale = (0.5, 1.0)  # as `scale`, of the images in it
    augment.mixup = 0.0  # probability that two images are blended
    augment.mixup_alpha = 32.0  # their weights are from Beta(alpha, alpha)

    # A new run starts with the weights in this file instead of random ones: a detector or a backbone of torchvision,
    # detectron2 or focaljax (.safetensors, .npz, .pth, .pkl), relative to the working directory; '': none.
    config.init = ConfigDict({"weights": ""})

    model = config.model = ConfigDict()
    model.variant = ""  # the published RetinaNet that these settings started from, see `apply_variant`
    model.backbone = "resnet50"
    model.norm = "batch_norm"  # or 'frozen_batch_norm', 'group_norm'
    model.norm_epsilon = 1e-5  # added to the variance
    model.stride_in_1x1 = False  # of a stage's first block; detectron2's is there, others' in its 3x3
    model.freeze_at = 0  # parts of the backbone that stay as they are: 1: stem, 2: and first stage, ... 5: all
    model.levels = (3, 4, 5, 6, 7)
    model.fpn_channels = 256
    model.p6_from = "c5"  # or 'p5'
    model.head_depth = 4
    model.head_channels = 256
    model.head_norm = ""  # '': none; or as `norm`
    model.head_init_std = 0.01
    model.prior = 0.01  # pi: every anchor's score at the start
    model.dtype = "float32"  # of the activations; or 'bfloat16'; weights, losses and statistics are float32
    model.remat = False  # compute activations anew in the backward pass: less memory, a third more arithmetic

    anchors = config.anchors = ConfigDict()
    anchors.layout = "centered"  # or 'torchvision': whole pixels, ratio by ratio
    anchors.sizes = (32.0, 64.0, 128.0, 256.0, 512.0)  # pixels, one a level
    anchors.scales = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
    anchors.ratios = (0.5, 1.0, 2.0)  # height / width

    matching = config.matching = ConfigDict()
    matching.positive_iou = 0.5
    matching.negative_iou = 0.4
    matching.low_quality = True
    matching.low_quality_at_zero = False  # as torchvision and detectron2 do, for equality with them only

    loss = config.loss = ConfigDict()
    # 'focal', 'balanced_cross_entropy', 'cross_entropy', 'focal_star', 'poly1_focal', 'quality_focal', 'varifocal',
    # 'ghm'; between the classes and background: 'softmax_focal', 'softmax_cross_entropy'.
    loss.classification = "focal"
    loss.alpha = 0.25  # of 'varifocal' the weight of background, 0.75 in its paper
    loss.gamma = 2.0  # of 'quality_focal', its beta
    loss.star_beta = 1.0  # of 'focal_star'
    loss.poly_epsilon = 1.0  # of 'poly1_focal'
    loss.ghm_bins = 30  # of 'ghm', which is divided by the number of outputs whatever the normalizer
    loss.ghm_momentum = 0.75  # weight of the past in its counts; 0: those of the batch alone
    # Which anchors count for the classification: '': all. 'hard_negatives': `mining_ratio` for each assigned anchor, of
    # the highest loss (SSD). 'ohem': the `mining_size` of an image with the highest loss after non-maximum suppression,
    # divided by how many they are; with a `mining_ratio` above 0 so many negatives to a positive.
    loss.mining = ""
    loss.mining_ratio = 3
    loss.mining_size = 512
    loss.mining_iou = 0.7  # of the suppression
    loss.box = "smooth_l1"  # or 'l1'; of the decoded box: 'iou', 'giou', 'diou', 'ciou'
    loss.beta = 0.11  # of smooth L1; the paper does not say, this is its authors' code
    loss.box_weight = 1.0
    # The loss is divided by the anchors assigned on each 'image', on the whole 'batch', by the moving average 'ema' of
    # the batch's, or by nothing: 'none'.
    loss.normalizer = "image"
    loss.normalizer_momentum = 0.9  # of 'ema': weight of the past

    optim = config.optim = ConfigDict()
    optim.name = "sgd"  # or 'adamw'
    optim.learning_rate = 0.01  # for a batch of `learning_rate_batch` images
    optim.learning_rate_batch = 16  # for other batches the rate is in proportion (Goyal et al. 2017); 0: it is as given
    optim.batch_size = 16  # of all devices together
    optim.accumulate = 1  # parts of a batch, computed one after the other for less memory; the gradient is the same
    optim.steps = 90_000
    optim.schedule = "step"  # or 'cosine', 'constant'
    optim.milestones = (60_000, 80_000)
    optim.decay = 0.1
    optim.warmup_steps = 500
    optim.warmup_factor = 1e-3
    optim.momentum = 0.9
    optim.weight_decay = 1e-4  # of convolution kernels
    optim.norm_weight_decay = 0.0  # of normalisations' scales and biases; -1: as weight_decay
    optim.bias_weight_decay = 0.0  # of convolutions' biases; -1: as weight_decay
    optim.clip_norm = 0.0  # 0: not clipped
    # A step whose loss or gradient is not finite: 'stop' saves the state before it and ends with an error, 'skip' goes
    # on without it. The images of its batch are written down either way.
    optim.nonfinite = "stop"
    optim.ema_decay = 0.0  # of the averaged weights that are evaluated; 0: none

    log = config.log = ConfigDict()
    log.every = 20  # steps
    log.pictures = 4  # images of the evaluated split that are shown at each evaluation, detections beside the truth
    # Weights & Biases beside TensorBoard: '': no; 'offline': kept in WORKDIR/wandb until `wandb sync`; 'online'.
    log.wandb = ""
    log.wandb_project = "focaljax"

    evaluation = config.eval = ConfigDict()
    evaluation.split = "val"
    evaluation.every = 0  # steps; 0: at the end only
    evaluation.batch_size = 16
    evaluation.score_threshold = 0.05
    evaluation.pre_nms_top_k = 1000
    evaluation.nms_iou = 0.5
    evaluation.suppression = "hard"  # or soft-NMS: 'linear', 'gaussian'
    evaluation.soft_sigma = 0.5  # of 'gaussian'
    evaluation.max_detections = 100
    # Test-time augmentation: what is found in all views of an image goes through one non-maximum suppression.
    evaluation.tta_flip = False  # also look at the mirrored image
    evaluation.tta_scales = (1.0,)  # factors on data.image_size; such as (0.8, 1.0, 1.2)

    checkpoint = config.checkpoint = ConfigDict()
    checkpoint.every = 1000  # steps; one is also saved before each evaluation
    checkpoint.keep = 2  # the latest so many, and the one with the best AP
    return config
