"""Names of what the judges score, in the order of every table."""

KEYS = ("posture", "auroc", "consistency", "fid", "ms_ssim", "diversity")
LOWER_IS_BETTER = ("fid", "ms_ssim")
"""Where nothing is known of real films; where it is, diversity and MS-SSIM are to come near to theirs."""
NEAR_TO_REAL = ("ms_ssim", "diversity")
PSI = ("log_sx", "log_sy", "tx", "ty", "theta")
"""The pose: logarithms of scales, shifts in half images, rotation in rad."""
