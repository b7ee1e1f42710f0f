"""Small instances made with pydicom. The docstring of each builder says what its pixels are.

Every builder takes attributes by keyword (`PatientID="P1"`) and makes new UIDs unless they are given.
"""

import io
from typing import Any

import imagecodecs
import numpy as np
import pydicom.uid
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2.1"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
MULTI_FRAME_BYTE_SC = "1.2.840.10008.5.1.4.1.1.7.2"
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
BASIC_TEXT_SR = "1.2.840.10008.5.1.4.1.1.88.11"

NATIVE = {
    "implicit": ImplicitVRLittleEndian,
    "explicit": ExplicitVRLittleEndian,
    "big endian": ExplicitVRBigEndian,
    "deflated": DeflatedExplicitVRLittleEndian,
}
ENCAPSULATED = {"jpeg": JPEGBaseline8Bit, "jpeg 2000": JPEG2000Lossless, "jpeg-ls": JPEGLSLossless, "rle": RLELossless}


def new_uid() -> str:
    """Return a new UID."""
    return str(pydicom.uid.generate_uid(prefix=None))


def encoded(data_set: Dataset, transfer_syntax: str = ExplicitVRLittleEndian) -> bytes:
    """Return the PS3.10 file of a data set whose pixels are little endian or encapsulated already."""
    uid = pydicom.uid.UID(transfer_syntax)
    data_set.file_meta = FileMetaDataset()
    data_set.file_meta.TransferSyntaxUID = uid
    data_set.file_meta.MediaStorageSOPClassUID = data_set.SOPClassUID
    data_set.file_meta.MediaStorageSOPInstanceUID = data_set.SOPInstanceUID
    if uid == ExplicitVRBigEndian and "PixelData" in data_set and data_set.BitsAllocated == 16:
        data_set.PixelData = np.frombuffer(data_set.PixelData, "<u2").astype(">u2").tobytes()
    target = io.BytesIO()
    pydicom.dcmwrite(target, data_set, enforce_file_format=True)
    return target.getvalue()


def general(sop_class_uid: str, modality: str, **attributes: Any) -> Dataset:
    """Return a data set with the attributes of patient, study, series and instance."""
    data_set = Dataset()
    data_set.SpecificCharacterSet = "ISO_IR 192"
    data_set.SOPClassUID = sop_class_uid
    data_set.SOPInstanceUID = new_uid()
    data_set.StudyInstanceUID = new_uid()
    data_set.SeriesInstanceUID = new_uid()
    data_set.Modality = modality
    data_set.PatientName = "Doe^Jane"
    data_set.PatientID = "P-1"
    data_set.PatientBirthDate = "19700102"
    data_set.PatientSex = "O"
    data_set.StudyDate = "20240131"
    data_set.StudyTime = "101530"
    data_set.StudyID = "S-1"
    data_set.AccessionNumber = "A-1"
    data_set.ReferringPhysicianName = "House^Gregory"
    data_set.StudyDescription = "Thorax"
    data_set.SeriesDescription = "Axial"
    data_set.SeriesNumber = 1
    data_set.InstanceNumber = 1
    return _with(data_set, attributes)


def _with(data_set: Dataset, attributes: dict[str, Any]) -> Dataset:
    for keyword, value in attributes.items():
        setattr(data_set, keyword, value)
    return data_set


def _described(data_set: Dataset, pixels: NDArray[Any], bits_stored: int, photometric: str) -> Dataset:
    samples = 3 if photometric not in ("MONOCHROME1", "MONOCHROME2") else 1
    data_set.SamplesPerPixel = samples
    data_set.PhotometricInterpretation = photometric
    if samples == 3:
        data_set.PlanarConfiguration = 0
    data_set.Rows, data_set.Columns = pixels.shape[-3:-1] if samples == 3 else pixels.shape[-2:]
    data_set.BitsAllocated = 8 * pixels.dtype.itemsize
    data_set.BitsStored = bits_stored
    data_set.HighBit = bits_stored - 1
    data_set.PixelRepresentation = 0
    data_set.add_new("PixelData", "OB" if data_set.BitsAllocated == 8 else "OW", pixels.astype(pixels.dtype.newbyteorder("<")).tobytes())
    if len(data_set.PixelData) % 2:
        data_set.PixelData += b"\0"
    return data_set


def ct_pixels(rows: int = 32, columns: int = 48) -> NDArray[np.uint16]:
    """Return the pixels of `ct`: a ramp 0, 3, 6 … along rows, cut at 12 bits."""
    return (np.arange(rows * columns, dtype=np.uint32) * 3 % 4096).astype(np.uint16).reshape(rows, columns)


def ct(rows: int = 32, columns: int = 48, **attributes: Any) -> Dataset:
    """Return a CT image: `ct_pixels`, 12 bits, rescaled by -1024, no window."""
    data_set = general(CT_IMAGE, "CT")
    data_set.RescaleIntercept, data_set.RescaleSlope = "-1024", "1"
    data_set.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    _described(data_set, ct_pixels(rows, columns), 12, "MONOCHROME2")
    return _with(data_set, attributes)


def frame_pixels(number_of_frames: int = 5, rows: int = 16, columns: int = 11) -> NDArray[np.uint8]:
    """Return the pixels of `multi_frame`: a ramp in each frame, beginning 40 higher in each."""
    ramp = np.arange(rows * columns, dtype=np.uint32).reshape(rows, columns)
    return np.stack([(ramp + 40 * index) % 256 for index in range(number_of_frames)]).astype(np.uint8)


def multi_frame(number_of_frames: int = 5, rows: int = 16, columns: int = 11, **attributes: Any) -> Dataset:
    """Return a multi-frame grayscale byte image with `frame_pixels`."""
    data_set = general(MULTI_FRAME_BYTE_SC, "OT", NumberOfFrames=number_of_frames)
    _described(data_set, frame_pixels(number_of_frames, rows, columns), 8, "MONOCHROME2")
    return _with(data_set, attributes)


def enhanced_ct(number_of_frames: int = 3, **attributes: Any) -> Dataset:
    """Return an enhanced CT with shared and per-frame functional groups; frame i is `ct_pixels(8, 10)` + i."""
    data_set = general(ENHANCED_CT_IMAGE, "CT", NumberOfFrames=number_of_frames)
    pixels = np.stack([ct_pixels(8, 10) + index for index in range(number_of_frames)])
    _described(data_set, pixels, 12, "MONOCHROME2")
    transformation = Dataset()
    transformation.RescaleIntercept, transformation.RescaleSlope, transformation.RescaleType = "-1024", "1", "HU"
    shared = Dataset()
    shared.PixelValueTransformationSequence = Sequence([transformation])
    data_set.SharedFunctionalGroupsSequence = Sequence([shared])
    frames = []
    for index in range(number_of_frames):
        position = Dataset()
        position.ImagePositionPatient = [0, 0, 2.5 * index]
        frame = Dataset()
        frame.PlanePositionSequence = Sequence([position])
        frames.append(frame)
    data_set.PerFrameFunctionalGroupsSequence = Sequence(frames)
    return _with(data_set, attributes)


def mask_pixels(number_of_frames: int = 3, rows: int = 5, columns: int = 7) -> NDArray[np.uint8]:
    """Return the pixels of `segmentation`, 0 or 1: every third, fourth, fifth … pixel of the frames."""
    place = np.arange(rows * columns)
    return np.stack([(place % (index + 3) == 0).reshape(rows, columns) for index in range(number_of_frames)]).astype(np.uint8)


def segmentation(number_of_frames: int = 3, rows: int = 5, columns: int = 7, **attributes: Any) -> Dataset:
    """Return a 1-bit segmentation of `mask_pixels`; a frame has 35 bits, so only the first begins at a whole byte."""
    data_set = general(SEGMENTATION, "SEG", NumberOfFrames=number_of_frames)
    data_set.SegmentationType = "BINARY"
    _described(data_set, mask_pixels(number_of_frames, rows, columns), 1, "MONOCHROME2")
    data_set.BitsAllocated = 1
    packed = np.packbits(mask_pixels(number_of_frames, rows, columns).ravel(), bitorder="little").tobytes()
    data_set.PixelData = packed + b"\0" * (len(packed) % 2)
    return _with(data_set, attributes)


def rgb_pixels(rows: int = 20, columns: int = 30) -> NDArray[np.uint8]:
    """Return the pixels of `rgb`: red grows along columns, green along rows, blue is 77."""
    red = np.broadcast_to(np.arange(columns) * 8 % 256, (rows, columns))
    green = np.broadcast_to((np.arange(rows) * 12 % 256)[:, None], (rows, columns))
    return np.stack([red, green, np.full((rows, columns), 77)], axis=-1).astype(np.uint8)


def rgb(rows: int = 20, columns: int = 30, **attributes: Any) -> Dataset:
    """Return a secondary capture in RGB with `rgb_pixels`."""
    data_set = general(SECONDARY_CAPTURE, "OT")
    _described(data_set, rgb_pixels(rows, columns), 8, "RGB")
    return _with(data_set, attributes)


def frame_bitstreams(name: str, number_of_frames: int = 3) -> list[bytes]:
    """Return the frames of `encapsulated`: `frame_pixels(n, 16, 24)`, each compressed, without fragment headers or padding."""
    frames = frame_pixels(number_of_frames, 16, 24)
    encode = {
        "jpeg": lambda frame: imagecodecs.jpeg8_encode(frame, level=95),
        "jpeg 2000": lambda frame: imagecodecs.jpeg2k_encode(frame, level=0, reversible=True, codecformat="j2k"),
        "jpeg-ls": imagecodecs.jpegls_encode,
        "rle": _rle,
    }[name]
    return [bytes(encode(frame)) for frame in frames]


def _rle(frame: NDArray[np.uint8]) -> bytes:
    """Return one RLE segment of literal runs of at most 128 bytes (PS3.5 §G)."""
    literal = b"".join(bytes([len(run) - 1]) + run for run in (frame.tobytes()[at : at + 128] for at in range(0, frame.size, 128)))
    literal += b"\0" * (len(literal) % 2)
    header = np.zeros(16, "<u4")
    header[:2] = (1, 64)
    return header.tobytes() + literal


def encapsulated(name: str, number_of_frames: int = 3, fragments: int = 1, offset_table: str = "full", **attributes: Any) -> Dataset:
    """Return a compressed image, to be encoded with ENCAPSULATED[name].

    Args:
        name: jpeg, jpeg 2000, jpeg-ls or rle.
        fragments: fragments per frame.
        offset_table: full, empty or extended.
    """
    data_set = general(MULTI_FRAME_BYTE_SC if number_of_frames > 1 else SECONDARY_CAPTURE, "OT")
    if number_of_frames > 1:
        data_set.NumberOfFrames = number_of_frames
    _described(data_set, frame_pixels(number_of_frames, 16, 24), 8, "MONOCHROME2")
    streams = frame_bitstreams(name, number_of_frames)
    if offset_table == "extended":
        data_set.PixelData, data_set.ExtendedOffsetTable, data_set.ExtendedOffsetTableLengths = encapsulate_extended(streams)
    else:
        data_set.PixelData = encapsulate(streams, fragments_per_frame=fragments, has_bot=offset_table == "full")
    data_set["PixelData"].VR = "OB"
    data_set["PixelData"].is_undefined_length = True
    if name == "jpeg":
        data_set.LossyImageCompression, data_set.LossyImageCompressionRatio = "01", "4"
        data_set.LossyImageCompressionMethod = "ISO_10918_1"
    return _with(data_set, attributes)


def with_private_elements(**attributes: Any) -> Dataset:
    """Return a CT with a private block of ACME 1.0: (0019,xx01) DS 1.5, (0019,xx02) LO one\\two, (0019,xx03) OB 01 02 03 04."""
    data_set = ct()
    block = data_set.private_block(0x0019, "ACME 1.0", create=True)
    block.add_new(0x01, "DS", "1.5")
    block.add_new(0x02, "LO", ["one", "two"])
    block.add_new(0x03, "OB", b"\x01\x02\x03\x04")
    return _with(data_set, attributes)


ICON = bytes(index * 7 % 256 for index in range(64 * 32))
CURVE = bytes(index * 5 % 251 for index in range(3000))


def with_bulk(**attributes: Any) -> Dataset:
    """Return a CT with three bulk values: Pixel Data, ICON nested in Icon Image Sequence, and CURVE in a private OB."""
    data_set = ct()
    icon = Dataset()
    icon.Rows, icon.Columns, icon.SamplesPerPixel, icon.PhotometricInterpretation = 32, 64, 1, "MONOCHROME2"
    icon.BitsAllocated = icon.BitsStored = 8
    icon.HighBit, icon.PixelRepresentation = 7, 0
    icon.add_new("PixelData", "OB", ICON)
    data_set.IconImageSequence = Sequence([icon])
    data_set.private_block(0x0019, "ACME 1.0", create=True).add_new(0x10, "OB", CURVE)
    return _with(data_set, attributes)


PARAMETRIC_MAP = "1.2.840.10008.5.1.4.1.1.30"


def parametric_map(keyword: str = "FloatPixelData", **attributes: Any) -> Dataset:
    """Return a parametric map of two frames of 3 × 4 numbers 0, 0.5, 1 …, in Float Pixel Data or Double Float Pixel Data."""
    data_set = general(PARAMETRIC_MAP, "MR", NumberOfFrames=2)
    data_set.SamplesPerPixel, data_set.PhotometricInterpretation = 1, "MONOCHROME2"
    data_set.Rows, data_set.Columns = 3, 4
    data_set.BitsAllocated = 32 if keyword == "FloatPixelData" else 64
    setattr(data_set, keyword, float_pixels(keyword).tobytes())
    return _with(data_set, attributes)


def float_pixels(keyword: str = "FloatPixelData") -> NDArray[Any]:
    """Return the pixels of `parametric_map`."""
    return (np.arange(24).reshape(2, 3, 4) / 2).astype("<f4" if keyword == "FloatPixelData" else "<f8")


VIDEO_PHOTOGRAPHIC = "1.2.840.10008.5.1.4.1.1.77.1.4.1"
VIDEO = "1.2.840.10008.1.2.4.102"
VIDEO_STREAM = b"\0\0\0\x18ftypmp42\0\0\0\0isommp42" + bytes(index * 11 % 256 for index in range(5000))


def video(**attributes: Any) -> Dataset:
    """Return a video of 30 frames whose bit stream is VIDEO_STREAM in three fragments, to be encoded with VIDEO; nothing decodes it."""
    data_set = general(VIDEO_PHOTOGRAPHIC, "XC", NumberOfFrames=30)
    _described(data_set, rgb_pixels(), 8, "YBR_PARTIAL_420")
    data_set.PixelData = encapsulate([VIDEO_STREAM], has_bot=False, fragments_per_frame=3)
    data_set["PixelData"].VR = "OB"
    data_set["PixelData"].is_undefined_length = True
    return _with(data_set, attributes)


def with_much_json(**attributes: Any) -> Dataset:
    """Return an image whose DICOM JSON is too large for the trailer of a pack."""
    references = [Dataset() for _ in range(2000)]
    for number, item in enumerate(references):
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", f"1.2.{number}"
    return ct(ReferencedInstanceSequence=references, **attributes)


def japanese(**attributes: Any) -> Dataset:
    """Return a CT whose Patient Name has three groups in ISO 2022 IR 87."""
    data_set = ct(SpecificCharacterSet=["", "ISO 2022 IR 87"], PatientName="Yamada^Tarou=山田^太郎=やまだ^たろう")
    return _with(data_set, attributes)


def resource(data_set: Dataset) -> str:
    """Return the path of an instance below the DICOMweb root."""
    return f"/studies/{data_set.StudyInstanceUID}/series/{data_set.SeriesInstanceUID}/instances/{data_set.SOPInstanceUID}"


def series_resource(data_set: Dataset) -> str:
    """Return the path of its series."""
    return f"/studies/{data_set.StudyInstanceUID}/series/{data_set.SeriesInstanceUID}"


def study_resource(data_set: Dataset) -> str:
    """Return the path of its study."""
    return f"/studies/{data_set.StudyInstanceUID}"


def hanging_protocol(name: str = "Chest CT", **attributes: Any) -> Dataset:
    """Return a Hanging Protocol (PS3.3 §A.44), which belongs to no study."""
    definition = Dataset()
    definition.Modality = "CT"
    definition.Laterality = ""
    data_set = Dataset()
    data_set.SOPClassUID = "1.2.840.10008.5.1.4.38.1"
    data_set.SOPInstanceUID = new_uid()
    data_set.Manufacturer = "Gantry"
    data_set.HangingProtocolName = name
    data_set.HangingProtocolDescription = f"{name}, with priors"
    data_set.HangingProtocolLevel = "SITE"
    data_set.HangingProtocolCreator = "Doe^John"
    data_set.HangingProtocolCreationDateTime = "20260102030405"
    data_set.HangingProtocolDefinitionSequence = [definition]
    data_set.NumberOfPriorsReferenced = 1
    return _with(data_set, attributes)


def color_palette(label: str = "HOT_IRON", **attributes: Any) -> Dataset:
    """Return a Color Palette (PS3.3 §A.58) of 256 reds; its values are long enough to be bulkdata."""
    data_set = Dataset()
    data_set.SOPClassUID = "1.2.840.10008.5.1.4.39.1"
    data_set.SOPInstanceUID = new_uid()
    data_set.ContentLabel = label
    data_set.ContentDescription = "Reds"
    data_set.ContentCreatorName = "Doe^John"
    for color in ("Red", "Green", "Blue"):
        setattr(data_set, f"{color}PaletteColorLookupTableDescriptor", [256, 0, 16])
        table = np.arange(256, dtype="<u2") * (257 if color == "Red" else 0)
        setattr(data_set, f"{color}PaletteColorLookupTableData", table.astype("<u2").tobytes())
    return _with(data_set, attributes)
