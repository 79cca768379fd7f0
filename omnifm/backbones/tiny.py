"""Tiny CLIP and LLaMA models with random weights: the default models, because they need no download.

They are created at first use, saved in the cache folder, and then loaded like any model from the Hugging Face hub.
"""

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from omnifm.data.demo import cache_folder
from omnifm.data.demos.vqa import texts
from omnifm.data.site_folder import new_folder

SEED = 0
POSITION_SCALE = 10
"""Factor for CLIP's position embeddings, so that an untrained encoder distinguishes places in the picture."""
SIZE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
VISION = SIZE | {"image_size": 48, "patch_size": 8}
LANGUAGE = SIZE | {"max_position_embeddings": 2048, "initializer_range": 0.05, "tie_word_embeddings": False}
SPECIAL = ("<pad>", "<s>", "</s>")
Kind = Literal["vision", "language"]
OPENINGS = "is are was were does do did has have can could which what where who why how in on at from this there it if"
WORDS = f"""
yes no not none both either neither left right upper lower middle central anterior posterior superior inferior medial
lateral bilateral unilateral side sided proximal distal deep superficial above below behind near between within around
the a an of to with without and or that these those image picture photo scan slice film figure patient shown seen
present absent visible evidence any other same different first second third one two three four five six seven eight nine
ten many much most more less than several single multiple number count size large larger small smaller big normal
abnormal abnormality abnormalities enlarged increased decreased dilated dense density intensity hyperdense hypodense
hyperintense hypointense enhancing enhancement heterogeneous homogeneous round oval irregular smooth sharp blunted
diffuse focal localized extensive mild moderate severe acute chronic old new black white gray grey dark bright color
radiograph xray x-ray x ray plain ct mri mr ultrasound us pet spect angiography tomography computed magnetic resonance
imaging weighted t1 t2 flair dwi diffusion contrast iv oral phase arterial venous window modality type kind method
technique taken acquired performed used plane axial coronal sagittal view pa ap section cross sectional level
brain head skull face orbit eye eyes sinus sinuses neck chest thorax abdomen abdominal pelvis spine back bone bones limb
organ organs system body part region area location located tissue soft structure structures
frontal parietal temporal occipital lobe lobes hemisphere hemispheres cortex cortical gyri sulci sulcus ventricle
ventricles ventricular cerebral cerebellum cerebellar brainstem pons midbrain thalamus basal ganglia caudate putamen
matter midline shift artery arteries vein veins vessel vessels vascular vasculature aorta aortic carotid blood
lung lungs pulmonary lobe bronchus trachea tracheal mediastinum mediastinal hilum hilar pleura pleural diaphragm
hemidiaphragm costophrenic angle angles apex base heart cardiac cardiomegaly silhouette border borders margin margins
rib ribs clavicle clavicles scapula sternum vertebra vertebrae vertebral disc shoulder hip
liver hepatic gallbladder bile biliary duct pancreas pancreatic spleen splenic kidney kidneys renal ureter bladder
stomach gastric bowel colon colonic appendix small intestine duodenum ileum cecum rectum prostate uterus ovary adrenal
mass masses lesion lesions nodule nodules tumor tumour cancer metastasis metastases cyst cystic cysts abscess infection
infarct infarcted infarction stroke ischemia hemorrhage bleed bleeding hematoma subdural epidural subarachnoid aneurysm
edema swelling hydrocephalus atrophy effusion effusions pneumothorax pneumonia consolidation opacity opacities opacified
infiltrate infiltrates atelectasis emphysema granuloma fibrosis calcification calcifications calcified stone stones
gallstones fracture fractures fractured broken dislocation scoliosis fluid air gas fat fatty free obstruction obstructed
perforation appendicitis diverticulitis cirrhosis ascites hernia thickening stranding collapse collapsed
catheter tube line lines clip clips wire wires device pacemaker hardware foreign object leads
diagnosis disease condition pathology process finding findings cause caused suggest consistent likely due describe
identify name symptom symptoms male female man woman gender sex age adult child young
appear appears look looks indicate indicated demonstrate show shows depicted displayed found occupy extend extends
ring medical spinal fluid-filled
{OPENINGS} {OPENINGS.title()} Yes No Left Right CT MRI MR PA AP The X-ray X-Ray
"""
"""Everyday and radiological words that become single tokens, so that real questions are not split into letters."""


def tiny(kind: Kind, cache: Path | None = None) -> Path:
    """The folder of a tiny model in the format of `save_pretrained`; the model is created if it is not there yet.

    Args:
        kind: "vision" (a CLIP vision encoder) or "language" (a LLaMA with its tokenizer).
        cache: folder in which the model is kept; by default the cache of the demo data.
    """
    recipe = json.dumps([kind, SEED, POSITION_SCALE, VISION, LANGUAGE, texts(), WORDS, torch.__version__])
    name = f"tiny-{kind}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    folder = (cache or cache_folder()) / "models" / name
    if not (folder / "config.json").is_file():
        with suppress(FileExistsError), new_folder(folder) as work, torch.random.fork_rng():
            torch.manual_seed(SEED)
            if kind == "vision":
                _save_vision(work)
            else:
                _save_language(work)
    return folder


def _save_vision(folder: Path) -> None:
    encoder = CLIPVisionModel(CLIPVisionConfig(**VISION))
    with torch.no_grad():
        encoder.embeddings.position_embedding.weight *= POSITION_SCALE
    encoder.save_pretrained(folder)


def _save_language(folder: Path) -> None:
    tokenizer = _tokenizer()
    ids = {f"{name}_token_id": number for number, name in enumerate(("pad", "bos", "eos"))}
    config = LANGUAGE | ids | {"vocab_size": len(tokenizer)}
    tokenizer.save_pretrained(folder)
    LlamaForCausalLM(LlamaConfig(**config)).save_pretrained(folder)


def _tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE: the demo's words and `WORDS` are single tokens; any other word is split into parts."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=4096, min_frequency=1, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    corpus = [f"Question: {text} Answer: {text}" for text in texts()] + [f" {word}" for word in WORDS.split()]
    bpe.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=SPECIAL[0], bos_token=SPECIAL[1], eos_token=SPECIAL[2]
    )
