"""Names of what the judges score, in the order of every table."""

KEYS = ("posture", "auroc", "consistency", "fid", "ms_ssim", "diversity", "pose_sd")
LOWER_IS_BETTER = ("fid", "ms_ssim", "pose_sd")
"""Where nothing is known of real films; where it is, these are to come near to theirs:"""
NEAR_TO_REAL = ("ms_ssim", "diversity", "pose_sd")
PSI = ("log_sx", "log_sy", "tx", "ty", "theta")
"""The pose: logarithms of scales, shifts in half images, rotation in rad."""
