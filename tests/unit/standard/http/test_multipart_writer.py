"""Multipart/related as written, read back by the standard library."""

import email
import email.policy
import re

from gantry_standard.http import multipart_writer


def test_parts_are_read_back_by_a_strict_reader() -> None:
    boundary = multipart_writer.new_boundary()
    payload = multipart_writer.part_head(boundary, "application/octet-stream; transfer-syntax=1.2.840.10008.1.2.1", "http://h/1", 4, True)
    payload += b"\x00\r\n\xff"
    payload += (
        multipart_writer.part_head(boundary, "image/jpeg", "http://h/2", None, False) + b"--x\r\n" + multipart_writer.closing(boundary)
    )
    head = f"Content-Type: {multipart_writer.content_type('application/octet-stream', boundary)}\r\n\r\n".encode()
    message = email.message_from_bytes(head + payload, policy=email.policy.HTTP)
    first, second = message.iter_parts()
    assert message.get_param("type") == "application/octet-stream"
    assert first["Content-Location"] == "http://h/1"
    assert first["Content-Length"] == "4"
    assert first.get_content_type() == "application/octet-stream"
    assert first.get_param("transfer-syntax") == "1.2.840.10008.1.2.1"
    assert second["Content-Length"] is None
    assert second["Content-Location"] == "http://h/2"
    assert second.get_payload(decode=True) == b"--x\r\n"
    assert message.epilogue in (None, "")


def test_a_boundary_is_random_and_legal() -> None:
    boundaries = {multipart_writer.new_boundary() for _ in range(100)}
    assert len(boundaries) == 100
    assert all(re.fullmatch("[0-9a-f]{32}", boundary) for boundary in boundaries)


def test_the_content_type_is_the_first_field_of_a_part() -> None:
    head = multipart_writer.part_head("b", "application/dicom; transfer-syntax=1.2", "http://h/1", None, True)
    assert head == b"--b\r\nContent-Type: application/dicom; transfer-syntax=1.2\r\nContent-Location: http://h/1\r\n\r\n"


def test_a_payload_without_parts() -> None:
    assert multipart_writer.closing("b", empty=True) == b"--b--\r\n"
