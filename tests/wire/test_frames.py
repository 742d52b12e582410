"""Frames on a connection, however the bytes arrive."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from internal_transfer.ports.ledger import U128_MAX, LedgerAccount, LedgerTransfer
from internal_transfer.wire.frames import FRAME_BYTES_MAX, Frames
from internal_transfer.wire.ledger_messages import (
    AccountRow,
    TransferRow,
    account_of_row,
    row_of_account,
    row_of_transfer,
    transfer_of_row,
)

U128 = st.integers(0, U128_MAX)
U64 = st.integers(0, 2**64 - 1)
U32 = st.integers(0, 2**32 - 1)
U16 = st.integers(0, 2**16 - 1)

transfers = st.builds(
    LedgerTransfer,
    id=U128,
    debit_account_id=U128,
    credit_account_id=U128,
    amount=U128,
    pending_id=U128,
    user_data_128=U128,
    user_data_64=U64,
    user_data_32=U32,
    timeout=U32,
    ledger=U32,
    code=U16,
    flags=U16,
    timestamp=U64,
)
accounts = st.builds(
    LedgerAccount,
    id=U128,
    ledger=U32,
    code=U16,
    flags=U16,
    user_data_128=U128,
    user_data_64=U64,
    user_data_32=U32,
    debits_pending=U128,
    debits_posted=U128,
    credits_pending=U128,
    credits_posted=U128,
    timestamp=U64,
)


@given(contents=st.lists(st.binary(max_size=50), max_size=10), data=st.data())
async def test_frames_arrive_whole_in_any_pieces(contents, data):
    """Whatever the pieces in which the bytes come, the frames come whole, in order, and none is left over."""
    stream = b"".join(len(each).to_bytes(4) + each for each in contents)
    taken = []
    frames = Frames(taken.append)
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        frames.data_received(stream[:size])
        stream = stream[size:]
    assert taken == contents
    assert frames.broken is None


async def test_the_largest_frame_is_taken_and_no_larger():
    """A frame of the bound arrives; of one byte more, nothing is kept."""
    taken = []
    frames = Frames(taken.append)
    frames.data_received(FRAME_BYTES_MAX.to_bytes(4) + bytes(FRAME_BYTES_MAX))
    assert [len(contents) for contents in taken] == [FRAME_BYTES_MAX]
    frames.data_received((FRAME_BYTES_MAX + 1).to_bytes(4))
    assert "larger" in frames.broken


@given(transfer=transfers, account=accounts)
def test_every_number_crosses(transfer, account):
    """Accounts and transfers are the same on the other side, with the largest numbers too."""
    row = msgspec.msgpack.decode(msgspec.msgpack.encode(row_of_transfer(transfer)), type=TransferRow)
    assert transfer_of_row(row) == transfer
    row = msgspec.msgpack.decode(msgspec.msgpack.encode(row_of_account(account)), type=AccountRow)
    assert account_of_row(row) == account
