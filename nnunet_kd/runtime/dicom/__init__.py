"""DICOM: series as images and DICOM-SEG as segmentations, with the extra ``[dicom]``."""
