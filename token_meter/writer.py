"""Putting lines into one process's segment, and what happens when the disk does not take them.

A short write leaves a torn line; the next successful write begins with a newline, so that readers skip exactly
one bad line. What could not be written waits in bounded memory. The caller (`Journal`) makes sure that only one
thread is in here, except for `sync` and `close_retired`, which have a lock of their own: a descriptor is never
closed, and its number never given to another file, while some thread may still write or force it to disk.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from errno import EBADF
from typing import Final

from token_meter.folder import JournalFolder, sync_folder
from token_meter.patience import PatientLock
from token_meter.segment_file import SegmentFile, create_segment, datasync, restore_segment, segment_name

BEGUN: Final = "begun"
"""The notice that a segment was begun; the others are failures."""

RETRIED_AT_ONCE_MAX: Final = 64
"""How many waiting lines one caller writes on behalf of others; the reporter writes the rest."""


class LineWriter:
    """Appends lines to this process's segment; `open_calls` are carried along when it begins another one."""

    def __init__(
        self, folder: JournalFolder, open_calls: Mapping[str, bytes], *, segment_bytes_max: int, pending_max: int
    ) -> None:
        self.file: SegmentFile | None = None
        self.lost = 0
        self.room = 0
        self.written = 0
        self.pending: dict[str | int, bytes] = {}
        self.notices: deque[tuple[str, BaseException | str]] = deque()
        self._folder = folder
        self._open_calls = open_calls
        self._segment_bytes_max = segment_bytes_max
        self._pending_max = pending_max
        self._descriptor = -1
        self._ready = False
        self._torn = False
        self._kept = 0
        self._name = os.urandom(6).hex()
        self._number = 0
        self._previous = ""
        self._retired: list[SegmentFile] = []
        self._sync_lock = PatientLock()
        self._syncing = False
        self._synced = 0
        self._folder_dirty = False

    def put(self, lines: bytes, key: str | None = None) -> bool:
        """Write lines; what the disk does not take waits (under `key`). False when there is no room to wait."""
        if self._ready:
            try:
                written = os.write(self._descriptor, lines)
            except OSError as error:
                self._failed(error)
            else:
                self.room -= written
                self.written += 1
                if written == len(lines):
                    return True
                lines = self._remainder(lines, written)
        if self.retry(RETRIED_AT_ONCE_MAX):
            lines = self._write(lines)
        return not lines or self._keep(lines, key)

    def retry(self, at_most: int) -> bool:
        """Write waiting lines, oldest first. True when the disk takes lines again."""
        if self.file is None and not self._start():
            return False
        for key in list(self.pending)[:at_most]:
            rest = self._write(self.pending[key])
            if rest:
                self.pending[key] = rest
                return False
            del self.pending[key]
        self._ready = not self.pending and not self._torn
        return True

    def rotate(self) -> None:
        """Go on in a new segment; when it cannot be created, in this one for a while longer."""
        old, torn = self.file, self._torn
        if old is None or not self._start():
            self.room = self._segment_bytes_max // 8
            return
        old.seal(torn=torn)
        self._retired.append(old)

    def check_file(self) -> None:
        """Notice a segment that was deleted, moved or closed under us, and put it back."""
        if self.file is None or (self.file.is_ours() and self.file.in_place()):
            return
        if self.file.is_ours():
            self._restore(self.file)
        else:
            self.notices.append(("journal segment", "other code closed its descriptor: lines may have gone astray"))
            self._let_go()

    def seal(self) -> None:
        """Seal the segment and leave it; the next line begins a new one."""
        if self.file is not None and self.file.seal(torn=self._torn):
            self.written += 1
            self._retired.append(self.file)
            self.file, self._descriptor, self._ready, self._torn, self._previous = None, -1, False, False, ""

    def sync(self, ticket: int) -> None:
        """Force everything up to a write (`written` at that time) to disk; one fsync serves all who wait."""
        with self._sync_lock:
            if self._synced >= ticket or self._syncing:
                return
            self._syncing = True
            try:
                self._sync()
            except OSError as error:
                self.notices.append(("journal fsync", error))
            finally:
                self._syncing = False

    def close_retired(self, *, durable: bool) -> None:
        """Close segments this process has left; one that could not be sealed is tried again."""
        with self._sync_lock:
            if self._syncing:
                return
            for file in list(self._retired):
                ours = file.is_ours()
                if ours and not file.sealed and not file.seal(torn=True):
                    continue
                if ours and durable:
                    self._sync_file(file.descriptor)
                self._retired.remove(file)
                file.close()

    def abandon(self) -> None:
        """Close everything as it is; an open call becomes `unmetered`, for nobody is left to end it."""
        for file in (self.file, *self._retired):
            if file is not None:
                with suppress(OSError):
                    file.close()

    def _write(self, lines: bytes) -> bytes:
        """One try; returns the lines that are not yet written."""
        data = b"\n" + lines if self._torn else lines
        try:
            written = os.write(self._descriptor, data)
        except OSError as error:
            self._failed(error)
            return lines
        self.room -= written
        self.written += 1
        if self._torn and written:
            self._torn = False
            written -= 1
        rest = self._remainder(lines, written)
        self._ready = not rest and not self.pending
        return rest

    def _remainder(self, lines: bytes, written: int) -> bytes:
        """The lines after a short write, the torn one included: its first part will be skipped as unreadable."""
        if written == len(lines):
            return b""
        whole = lines.rfind(b"\n", 0, written) + 1
        self._torn = written > whole
        self._ready = False
        self.notices.append(("journal write", "the disk took only a part of a line (full?)"))
        return lines[whole:]

    def _failed(self, error: OSError) -> None:
        self._ready = False
        self.notices.append(("journal write", error))
        if error.errno == EBADF:
            self._let_go()

    def _keep(self, lines: bytes, key: str | None) -> bool:
        self._ready = False
        if len(self.pending) < self._pending_max:
            self._kept += 1
            self.pending[key or self._kept] = lines
            return True
        if key is None:
            self.lost += lines.count(b"\n")
            self.notices.append(("events lost", f"{self.lost} lost: the disk takes nothing and memory is full"))
        return False

    def _start(self) -> bool:
        """Begin a segment, the folder too if someone deleted it."""
        name = segment_name(self._name, self._number + 1)
        try:
            self._folder.make()
            fresh = create_segment(self._folder, name, carried=list(self._open_calls.values()), previous=self._previous)
        except OSError as error:
            self.notices.append(("journal segment", error))
            return False
        self._number += 1
        self._adopt(fresh)
        self.notices.append((BEGUN, ""))
        return True

    def _adopt(self, file: SegmentFile) -> None:
        self.file, self._descriptor, self._previous = file, file.descriptor, file.path.name
        self._torn = False
        self._ready = not self.pending
        # Many open calls at the head must not make every write begin another segment.
        self.room = max(self._segment_bytes_max - file.size, self._segment_bytes_max // 2)
        self._folder_dirty = True
        self.written += 1

    def _let_go(self) -> None:
        """The descriptor is not ours any more. The next segment carries on what is open."""
        if self.file is not None:
            self._retired.append(self.file)
        self.file, self._descriptor, self._ready, self._torn = None, -1, False, False

    def _restore(self, lost: SegmentFile) -> None:
        self.notices.append(("journal segment", f"{lost.path.name} was deleted while in use: writing it again"))
        try:
            self._folder.make()
            fresh = restore_segment(lost)
        except OSError as error:
            self.notices.append(("journal segment", error))
            return
        lost.sealed = True
        self._retired.append(lost)
        torn = self._torn
        self._adopt(fresh)
        self._torn, self._ready = torn, self._ready and not torn

    def _sync(self) -> None:
        upto = self.written
        if self._folder_dirty:
            self._folder_dirty = False
            sync_folder(self._folder.segments)
        for file in list(self._retired):
            if file.is_ours():
                datasync(file.descriptor)
        if self._descriptor >= 0:
            datasync(self._descriptor)
        self._synced = upto

    def _sync_file(self, descriptor: int) -> None:
        try:
            datasync(descriptor)
        except OSError as error:
            self.notices.append(("journal fsync", error))
