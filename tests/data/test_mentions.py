"""What sentences assert and deny: by hand, and against the phantom's grammar, which knows what it says."""

from __future__ import annotations

import numpy as np
import pytest

from cxrl.data.mentions import said
from cxrl.data.phantom.reports import sample_findings, write_report
from cxrl.findings import CHEXPERT_FINDINGS, NO_FINDING, PHANTOM_FINDINGS, SUPPORT_DEVICES

CHEST = " ".join(
    sorted(
        f.replace(" ", "_") for f in CHEXPERT_FINDINGS if f not in (NO_FINDING, SUPPORT_DEVICES, "Fracture")
    )
)
LUNGS = "Atelectasis Consolidation Edema Lung_Lesion Lung_Opacity Pneumonia"


def names(found: frozenset[str]) -> str:
    return " ".join(sorted(name.replace(" ", "_") for name in found))


@pytest.mark.parametrize(
    ("text", "asserted", "denied"),
    [
        ("", "", ""),
        ("Bibasilar atelectasis.", "Atelectasis", ""),
        ("Collapse of the right upper lobe.", "Atelectasis", ""),
        ("Moderate cardiomegaly.", "Cardiomegaly", ""),
        ("The cardiac silhouette is mildly enlarged.", "Cardiomegaly", ""),
        ("Enlarged heart.", "Cardiomegaly", ""),
        ("Left lower lobe consolidation.", "Consolidation", ""),
        ("Vascular congestion.", "Edema", ""),
        ("Congestive heart failure.", "Edema", ""),
        ("Widened mediastinum.", "Enlarged_Cardiomediastinum", ""),
        ("Healed rib fractures.", "Fracture", ""),
        ("A 9 mm nodule in the left lung.", "Lung_Lesion", ""),
        ("Hilar mass.", "Lung_Lesion", ""),
        ("Right basilar opacity.", "Lung_Opacity", ""),
        ("Left base airspace disease.", "Lung_Opacity", ""),
        ("Small bilateral pleural effusions.", "Pleural_Effusion", ""),
        ("Apical pleural thickening.", "Pleural_Other", ""),
        ("Right middle lobe pneumonia.", "Pneumonia", ""),
        ("Tiny apical pneumothorax.", "Pneumothorax", ""),
        ("Hydropneumothorax.", "Pleural_Effusion Pneumothorax", ""),
        ("Sternotomy wires.", "Support_Devices", ""),
        ("The left PICC line ends in the SVC.", "Support_Devices", ""),
        # denied before, after, in a list, by another place's state
        ("No pneumothorax or pleural effusion.", "", "Pleural_Effusion Pneumothorax"),
        ("No pneumothorax, effusion, consolidation.", "", "Consolidation Pleural_Effusion Pneumothorax"),
        ("No focal consolidation, large effusion, or edema.", "", "Consolidation Edema Pleural_Effusion"),
        ("No consolidation, large effusion/pneumothorax.", "", "Consolidation Pleural_Effusion Pneumothorax"),
        ("Without evidence of pneumonia.", "", "Pneumonia"),
        ("Negative for fracture.", "", "Fracture"),
        ("Pneumothorax is not seen.", "", "Pneumothorax"),
        ("The effusion has resolved.", "", "Pleural_Effusion"),
        ("Pneumothorax: none.", "", "Pneumothorax"),
        ("The heart is not enlarged.", "", "Cardiomegaly"),
        ("Nonenlarged heart.", "", "Cardiomegaly"),
        ("Heart size is normal.", "", "Cardiomegaly"),
        ("Normal heart size.", "", "Cardiomegaly"),
        ("Unremarkable cardiomediastinal silhouette.", "", "Cardiomegaly Enlarged_Cardiomediastinum"),
        ("Heart and mediastinum within normal limits.", "", "Cardiomegaly Enlarged_Cardiomediastinum"),
        ("The lungs are clear.", "", LUNGS),
        ("No acute pulmonary disease.", "", LUNGS),
        ("Costophrenic angles are sharp.", "", "Pleural_Effusion"),
        ("No acute cardiopulmonary abnormality.", "", CHEST),
        ("No evidence of active disease.", "", CHEST),
        ("Normal chest radiograph.", "", CHEST),
        ("Negative chest.", "", CHEST),
        ("Normal.", "", CHEST),
        # both, and where a denial ends
        ("No pneumothorax. Small left effusion.", "Pleural_Effusion", "Pneumothorax"),
        ("No pneumothorax, small left effusion.", "Pleural_Effusion", "Pneumothorax"),
        ("No pneumothorax but a small effusion.", "Pleural_Effusion", "Pneumothorax"),
        ("No edema; there is a right effusion.", "Pleural_Effusion", "Edema"),
        ("Left effusion without pneumothorax.", "Pleural_Effusion", "Pneumothorax"),
        ("No right effusion. Left effusion.", "Pleural_Effusion", "Pleural_Effusion"),
        ("Cardiomegaly, pneumothorax is not seen.", "Cardiomegaly", "Pneumothorax"),
        ("No acute disease with mild cardiomegaly.", "Cardiomegaly", CHEST),
        # said, though not firmly; and no change is no denial
        ("Pneumonia cannot be excluded.", "Pneumonia", ""),
        ("Possible small effusion.", "Pleural_Effusion", ""),
        ("The effusion has not resolved.", "Pleural_Effusion", ""),
        ("The pneumothorax has partially resolved.", "Pneumothorax", ""),
        ("No significant change in the large effusion.", "Pleural_Effusion", ""),
        # neither
        ("Heart size at the upper limits of normal.", "", ""),
        ("Borderline heart size.", "", ""),
        ("Stable cardiac silhouette.", "", ""),
        ("Pericardial effusion.", "", ""),
        ("Soft tissue edema.", "", ""),
        ("No acute osseous abnormality.", "", ""),
        ("Scoliosis.", "", ""),
        ("Upright portable film.", "", ""),
    ],
)  # fmt: skip
def test_sentences(text: str, asserted: str, denied: str) -> None:
    found = said(text)
    assert (names(found.asserted), names(found.denied)) == (asserted, denied)
    assert said(text.upper()) == found


def test_the_phantom_says_what_it_means() -> None:
    rng = np.random.default_rng(3)
    for _ in range(1500):
        findings = sample_findings(rng)
        text = write_report(findings, rng, "all")
        found = said(text, PHANTOM_FINDINGS)
        assert found.asserted == {f.name for f in findings}, text
        assert not found.denied & found.asserted, text
        assert findings or found.denied, text


def test_other_findings_go_by_their_names() -> None:
    found = said("Large hiatal hernia, no free-air.", ("Hiatal_Hernia", "Free Air", "Edema", NO_FINDING))
    assert (found.asserted, found.denied) == ({"Hiatal_Hernia"}, {"Free Air"})
    assert said("Normal chest. Edema.", ("Edema",)).denied == {"Edema"}
    assert not said("No finding.", (NO_FINDING,)).denied
