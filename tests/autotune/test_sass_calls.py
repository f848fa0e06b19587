"""Loops that machine code before sm_90 leaves by a call that never returns, beside calls that do; a predicate that is
kept in a register."""

from __future__ import annotations

import gc
import weakref

from tcomp.autotune.sass import functions_of
from tcomp.autotune.sass_registers import all_read, all_written
from tcomp.autotune.sass_steps import decoded
from tcomp.autotune.sass_walk import Walk

LOOP = """
.text.k:
        /*0000*/                   MOV R1, RZ ;
.L_x_2:
        /*0010*/                   IADD3 R1, R1, 0x1, RZ ;
        /*0020*/                   CALL.REL.NOINC `(.L_x_3) ;
        /*0030*/                   ISETP.GE.U32.AND P0, PT, R1, 0x5, PT ;
        /*0034*/                   P2R R127, PR, RZ, 0x1 ;
        /*0038*/                   ISETP.NE.AND P2, PT, R127, RZ, PT ;
        /*0040*/               @P2 CALL.REL.NOINC `(.L_x_1) ;
        /*0050*/                   BRA `(.L_x_2) ;
.L_x_1:
        /*0060*/                   EXIT ;
.L_x_3:
        /*0068*/               @P0 EXIT ;
        /*0070*/                   RET.REL.NODEC R20 `(k) ;
"""


def test_a_call_that_never_returns_leaves_the_loop() -> None:
    function = functions_of(LOOP)["k"]
    way = Walk(function, {}, {}).run()
    turns = [way.times(b, i) for b in function.blocks for i in b.instructions if i.name == "IADD3"]
    assert not way.cut and turns == [5]


KEPT = """
.text.k:
        /*0000*/                   MOV R1, RZ ;
.L_x_1:
        /*0010*/                   IADD3 R1, R1, 0x1, RZ ;
        /*0020*/                   ISETP.GE.U32.AND P2, PT, R1, 0x7, PT ;
        /*0030*/                   LOP3.LUT R23, R23, 0xfffff7ff, RZ, 0xc0, !PT ;
        /*0040*/               @P2 LOP3.LUT R23, R23, 0x800, RZ, 0xfc, !PT ;
        /*0050*/                   ISETP.NE.AND P2, PT, R1, RZ, PT ;
        /*0060*/                   LOP3.LUT P2, RZ, R23, 0x800, RZ, 0xc0, !PT ;
        /*0070*/              @!P2 BRA `(.L_x_1) ;
        /*0080*/                   EXIT ;
"""


def test_a_predicate_kept_as_a_bit_of_a_register_ends_its_loop() -> None:
    """The register was never written: its other bits are whatever they are."""
    function = functions_of(KEPT)["k"]
    way = Walk(function, {}, {}).run()
    turns = [way.times(b, i) for b in function.blocks for i in b.instructions if i.name == "IADD3"]
    assert not way.cut and not way.unknown and turns == [7]


UNPACKED = """
.text.k:
        /*0000*/                   MOV R1, RZ ;
        /*0008*/                   ISETP.NE.AND P1, PT, R1, RZ, PT ;
.L_x_1:
        /*0010*/                   IADD3 R1, R1, 0x80, RZ ;
        /*0020*/                   R2P PR, R1.B1, 0x5 ;
        /*0030*/              @!P2 BRA `(.L_x_1) ;
        /*0040*/               @P0 BRA `(.L_x_2) ;
        /*0050*/               @P1 BRA `(.L_x_2) ;
        /*0060*/                   EXIT ;
.L_x_2:
        /*0070*/                   IADD3 R1, R1, 0x1, RZ ;
        /*0080*/                   EXIT ;
"""


def test_predicates_unpacked_from_a_byte_of_a_register() -> None:
    """Of the byte's bits those of the mask: P2 holds first at 0x400, where P0 does not, and P1 is left alone."""
    function = functions_of(UNPACKED)["k"]
    way = Walk(function, {}, {}).run()
    turns = [way.times(b, i) for b in function.blocks for i in b.instructions if i.name == "IADD3"]
    assert not way.cut and not way.unknown and turns == [8, 0]


OUTER = """
.text.k:
        /*0000*/                   MOV R2, RZ ;
.L_x_1:
        /*0010*/                   MOV R1, RZ ;
.L_x_2:
        /*0020*/                   UIADD3 UR4, UR4, 0x1, URZ ;
        /*0030*/                   IADD3 R1, R1, 0x1, RZ ;
        /*0040*/                   ISETP.GE.U32.AND P0, PT, R1, 0x3, PT ;
        /*0050*/               @P0 CALL.REL.NOINC `(.L_x_3) ;
        /*0060*/                   BRA `(.L_x_2) ;
.L_x_3:
        /*0070*/                   IADD3 R2, R2, 0x1, RZ ;
        /*0080*/                   UISETP.GE.U32.AND UP0, UPT, UR4, 0xc, UPT ;
        /*0090*/                   UP2UR UR9, UPR, URZ, 0x1 ;
        /*00a0*/                   UISETP.NE.AND UP2, UPT, UR9, URZ, UPT ;
        /*00b0*/                   PLOP3.LUT P1, PT, PT, PT, UP2, 0x80, 0x0 ;
        /*00c0*/               @P1 EXIT ;
        /*00d0*/                   BRA `(.L_x_1) ;
.L_x_4:
        /*00e0*/                   RET.REL.NODEC R20 `(k) ;
"""


def test_a_loop_around_a_loop_is_gone_on_with_by_a_call() -> None:
    """No way from the call's target returns, though a subroutine behind it does; and what ends the outer loop is kept
    in a uniform register."""
    function = functions_of(OUTER)["k"]
    way = Walk(function, {}, {0x0: 0}).run()
    turns = [way.times(b, i) for b in function.blocks for i in b.instructions if i.name == "IADD3"]
    assert not way.cut and not way.unknown and turns == [12, 4]


DIVIDED = """
.text.k:
        /*0000*/                   S2R R1, SR_CTAID.X ;
        /*0010*/                   I2F.U32.RP R2, R1 ;
        /*0020*/                   MUFU.RCP R2, R2 ;
        /*0030*/                   F2I.FTZ.U32.TRUNC.NTZ R2, R2 ;
        /*0040*/                   ISETP.GE.AND P0, PT, R2, 0x3, PT ;
        /*0050*/               @P0 BRA `(.L_x_1) ;
        /*0060*/                   LDG.E R3, desc[UR4][R4.64] ;
        /*0070*/                   ISETP.GE.AND P1, PT, R3, 0x3, PT ;
        /*0080*/               @P1 BRA `(.L_x_1) ;
        /*0090*/                   IADD3 R5, R5, 0x1, RZ ;
.L_x_1:
        /*00a0*/                   EXIT ;
"""


def test_a_quotient_of_block_numbers_is_no_data() -> None:
    """What lies behind a condition on it is gone through; a loaded value's is gone around."""
    function = functions_of(DIVIDED)["k"]
    way = Walk(function, {"SR_CTAID.X": 4}, {}).run()
    turns = [way.times(b, i) for b in function.blocks for i in b.instructions if i.name in ("LDG", "IADD3")]
    assert way.unknown == 2 and turns == [1, 0]


def test_what_was_read_of_instructions_goes_with_them() -> None:
    """A search reads millions of them."""
    gc.freeze()  # (so that only what comes now is looked through)
    try:
        function = functions_of(KEPT)["k"]
        kept = [weakref.ref(i) for i in function.instructions]
        Walk(function, {}, {}).run()
        for i in function.instructions:
            assert all_read(i) is all_read(i) and all_written(i) is all_written(i)
        decoded.cache_clear()
        del function, i
        gc.collect()
    finally:
        gc.unfreeze()
    assert not any(r() for r in kept)


OTHERWISE = """
.text.k:
        /*0000*/                   MOV R1, 0x3 ;
        /*0010*/                   ISETP.GE.AND P0, P1, R1, 0x5, PT ;
        /*0020*/               @P1 BRA `(.L_x_1) ;
        /*0030*/                   EXIT ;
.L_x_1:
        /*0040*/               @P0 BRA `(.L_x_1) ;
        /*0050*/                   EXIT ;
"""


def test_a_comparison_s_second_predicate_is_where_it_does_not_hold() -> None:
    way = Walk(functions_of(OTHERWISE)["k"], {}, {}).run()
    assert not way.unknown and way.path == (0, 2, 3)
