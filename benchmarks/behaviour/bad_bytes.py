"""A million bytes that are no requests, or nearly: is anybody disturbed, does memory grow?"""

import asyncio
import random

from server_processes import Rival, Server, serving, usage_of

from behaviour.clients import (
    CLOSED,
    Client,
    count_statuses,
    crowd,
    open_clients,
    p99_of,
    request_of,
)
from behaviour.grpc_client import PREDICT, has_grpc, message_of, open_channel

TITLE = "A million bad bytes: half of them random, half of them requests with mistakes"
NUM_BYTES, PIECE, AT_A_TIME, PATIENCE = 1_000_000, 2000, 32, 0.3
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def measure(rival: Rival, python: str, is_quick: bool) -> dict[str, str]:
    """Returns what was answered, and the memory after each million."""
    num_rounds = 2 if is_quick else 3
    with serving(rival, python) as server:
        rows = asyncio.run(disturb(server, num_rounds))
    if not rival.package and has_grpc():
        with serving(rival, python, "--grpc") as server:
            rows |= disturb_grpc(server, num_rounds)
    return rows


async def disturb(server: Server, num_rounds: int) -> dict[str, str]:
    valid = request_of(server.rival)
    neighbours = await ask_beside_nonsense(server, valid)
    statuses: list[int] = []
    async with crowd(server, valid, 4) as answers:
        await asyncio.sleep(1.0)
        memory = [usage_of(server.process.pid).megabytes]
        for seed in range(num_rounds):
            pieces = bad_pieces(random.Random(seed), valid)
            await asyncio.gather(*(throw(server.port, pieces, statuses) for _ in range(AT_A_TIME)))
            memory.append(usage_of(server.process.pid).megabytes)
    return {
        "eight good requests beside one that is no JSON": count_statuses(neighbours),
        f"answers to {num_rounds} million bytes": count_statuses(statuses),
        "good clients meanwhile": f"{count_statuses([answer.status for answer in answers])}, "
        f"p99 {p99_of(answers)}",
        "MB before, and after each million": describe(memory),
    }


async def ask_beside_nonsense(server: Server, valid: bytes) -> list[int]:
    """Returns the statuses of good requests that come at one time with a body of no sense."""
    clients = await open_clients(server.port, 9)
    head, _, body = valid.partition(b"\r\n\r\n")
    nonsense = head + b"\r\n\r\n" + body.replace(b"}", b"{")
    answers = await asyncio.gather(
        *(client.ask(valid if number else nonsense) for number, client in enumerate(clients))
    )
    for client in clients:
        client.close()
    return [answer.status for answer in answers[1:]]


def bad_pieces(source: random.Random, valid: bytes) -> list[bytes]:
    """Returns what to send on each connection, a million bytes in all."""
    pieces = [source.randbytes(PIECE) for _ in range(NUM_BYTES // 2 // PIECE)]
    num_bytes = NUM_BYTES // 2
    while num_bytes > 0:
        pieces.append(mutate(source, valid))
        num_bytes -= len(pieces[-1])
    source.shuffle(pieces)
    return pieces


def mutate(source: random.Random, valid: bytes) -> bytes:
    """Returns bytes with one to four mistakes."""
    data = bytearray(valid)
    for _ in range(source.randint(1, 4)):
        start = source.randrange(len(data) + 1)
        end = min(start + source.randint(1, 16), len(data))
        match source.randrange(5):
            case 0:
                data[start:end] = source.randbytes(end - start)
            case 1:
                del data[start:end]
            case 2:
                data[start:start] = data[start:end] * source.randint(1, 8)
            case 3:
                data[start:start] = source.choice([b"\r\n", b"\0", b"9", b"-", b"\xff", b"[", b'"'])
            case _:
                del data[start:]
    return bytes(data)


async def throw(port: int, pieces: list[bytes], statuses: list[int]) -> None:
    """Sends pieces, one a connection, while there are any."""
    while pieces:
        piece = pieces.pop()
        try:
            client = await Client.open(port)
        except OSError:
            statuses.append(CLOSED)
            continue
        client.writer.write(piece)
        statuses.append(await client.read_status(PATIENCE))
        client.close()


def disturb_grpc(server: Server, num_rounds: int) -> dict[str, str]:
    import grpc

    codes: dict[str, int] = {}
    memory: list[float] = []
    with open_channel(server.port + 1) as channel:
        call = channel.unary_unary(PREDICT)

        def ask(data: bytes) -> str:
            try:
                call(data, timeout=60)
            except grpc.RpcError as error:
                return str(error.code().name)
            return "OK"

        ask(message_of())
        memory.append(usage_of(server.process.pid).megabytes)
        for seed in range(num_rounds):
            pieces = bad_pieces(random.Random(seed), message_of())
            for piece in pieces:
                if len(piece) == PIECE:
                    continue
                code = ask(piece)
                codes[code] = codes.get(code, 0) + 1
            raw = [
                PREFACE * (number % 2) + piece
                for number, piece in enumerate(pieces)
                if len(piece) == PIECE
            ]
            asyncio.run(throw(server.port + 1, raw, []))
            memory.append(usage_of(server.process.pid).megabytes)
        after = ask(message_of())
    return {
        "gRPC, answers to the messages with mistakes": ", ".join(
            f"{count} {code}" for code, count in sorted(codes.items())
        ),
        "gRPC, a good call afterwards": after,
        "gRPC, MB before, and after each million": describe(memory),
    }


def describe(memory: list[float]) -> str:
    return ", ".join(f"{megabytes:.1f}" for megabytes in memory)
