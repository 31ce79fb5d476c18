"""Pictures in and out: reading films, writing PNG and DICOM that say they are synthetic."""
