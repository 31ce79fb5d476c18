"""Names of findings, in the order of labels: CheXpert's 14, and the seven that the phantom can show."""

CHEXPERT_FINDINGS = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Enlarged Cardiomediastinum",
    "Fracture",
    "Lung Lesion",
    "Lung Opacity",
    "No Finding",
    "Pleural Effusion",
    "Pleural Other",
    "Pneumonia",
    "Pneumothorax",
    "Support Devices",
)
"""The 14 labels of CheXpert (Irvin et al. 2019, arXiv 1901.07031) in MIMIC-CXR-JPG's column order."""

PHANTOM_FINDINGS = (
    "No Finding",
    "Cardiomegaly",
    "Pleural Effusion",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Lung Lesion",
)
"""The label order of the phantom; the names are CheXpert's."""

NO_FINDING, SUPPORT_DEVICES = "No Finding", "Support Devices"
"""The two labels that are no disease: CheXpert calls a report with nothing but devices ``No Finding``."""
