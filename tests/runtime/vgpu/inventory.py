"""One example of every instruction form that PTX 9.0 has for sm_90a, apart from textures, surfaces and video.

Braces expand as in a shell: `add.{u16,s16}` is two instructions' opcodes. Registers are those of conftest.entry, with
%rq0, %rq1 of 128 bits, shared memory `buf`, and global memory at %rd0.
"""

from __future__ import annotations

import re


def expand(text: str) -> list[str]:
    """`a{b,c}d` -> [`abd`, `acd`], in the opcode only (up to the first space)."""
    found = re.match(r"([^ ]*?)\{([^{} ]*)\}([^ ]*)(.*)", text, re.S)
    if not found:
        return [text]
    head, options, tail, rest = found.groups()
    return [x for option in options.split(",") for x in expand(head + option + tail + rest)]


ARITHMETIC = """
add.{u16,s16} %h1, %h2, %h3
add.{u32,s32,u16x2,s16x2,sat.s32} %r1, %r2, %r3
add.{u64,s64} %rd1, %rd2, %rd3
sub.{u16,s16} %h1, %h2, %h3
sub.{u32,s32,sat.s32} %r1, %r2, %r3
sub.{u64,s64} %rd1, %rd2, %rd3
mul.{lo,hi}.{u16,s16} %h1, %h2, %h3
mul.{lo,hi}.{u32,s32} %r1, %r2, %r3
mul.{lo,hi}.{u64,s64} %rd1, %rd2, %rd3
mul.wide.{u16,s16} %r1, %h2, %h3
mul.wide.{u32,s32} %rd1, %r2, %r3
mad.{lo,hi}.{u16,s16} %h1, %h2, %h3, %h4
mad.{lo.u32,lo.s32,hi.u32,hi.s32,hi.sat.s32} %r1, %r2, %r3, %r4
mad.{lo,hi}.{u64,s64} %rd1, %rd2, %rd3, %rd4
mad.wide.{u16,s16} %r1, %h2, %h3, %r4
mad.wide.{u32,s32} %rd1, %r2, %r3, %rd4
mul24.{lo,hi}.{u32,s32} %r1, %r2, %r3
mad24.{lo.u32,lo.s32,hi.u32,hi.s32,hi.sat.s32} %r1, %r2, %r3, %r4
sad.{u16,s16} %h1, %h2, %h3, %h4
sad.{u32,s32} %r1, %r2, %r3, %r4
sad.{u64,s64} %rd1, %rd2, %rd3, %rd4
{div,rem}.{u16,s16} %h1, %h2, %h3
{div,rem}.{u32,s32} %r1, %r2, %r3
{div,rem}.{u64,s64} %rd1, %rd2, %rd3
{abs,neg}.s16 %h1, %h2
{abs,neg}.s32 %r1, %r2
{abs,neg}.s64 %rd1, %rd2
{min,max}.{u16,s16} %h1, %h2, %h3
{min,max}.{u32,s32,relu.s32,u16x2,s16x2,relu.s16x2} %r1, %r2, %r3
{min,max}.{u64,s64} %rd1, %rd2, %rd3
{popc,clz,brev}.b32 %r1, %r2
{popc,clz}.b64 %r1, %rd2
brev.b64 %rd1, %rd2
bfind.{u32,s32,shiftamt.u32,shiftamt.s32} %r1, %r2
bfind.{u64,s64,shiftamt.u64} %r1, %rd2
fns.b32 %r1, %r2, %r3, %r4
bfe.{u32,s32} %r1, %r2, %r3, %r4
bfe.{u64,s64} %rd1, %rd2, %r3, %r4
bfi.b32 %r1, %r2, %r3, %r4, %r5
bfi.b64 %rd1, %rd2, %rd3, %r4, %r5
szext.{clamp,wrap}.{u32,s32} %r1, %r2, %r3
bmsk.{clamp,wrap}.b32 %r1, %r2, %r3
dp4a.{u32,s32}.{u32,s32} %r1, %r2, %r3, %r4
dp2a.{lo,hi}.{u32,s32}.{u32,s32} %r1, %r2, %r3, %r4
add.cc.{u32,s32} %r1, %r2, %r3
addc.{u32,s32,cc.u32,cc.s32} %r1, %r2, %r3
add.cc.{u64,s64} %rd1, %rd2, %rd3
addc.{u64,cc.u64} %rd1, %rd2, %rd3
sub.cc.u32 %r1, %r2, %r3
subc.{u32,cc.s32} %r1, %r2, %r3
{subc,sub.cc}.u64 %rd1, %rd2, %rd3
mad.{lo,hi}.cc.{u32,s32} %r1, %r2, %r3, %r4
madc.{lo,hi}.{u32,s32,cc.u32} %r1, %r2, %r3, %r4
madc.{lo,hi}.{u64,cc.s64} %rd1, %rd2, %rd3, %rd4
"""

FLOAT = """
testp.{finite,infinite,number,notanumber,normal,subnormal}.f32 %p1, %f2
testp.{finite,subnormal}.f64 %p1, %fd2
copysign.f32 %f1, %f2, %f3
copysign.f64 %fd1, %fd2, %fd3
{add,sub,mul}.{f32,rn.f32,rz.f32,rm.f32,rp.f32,ftz.f32,sat.f32,rn.ftz.sat.f32} %f1, %f2, %f3
{add,sub,mul}.{f64,rn.f64,rz.f64,rm.f64,rp.f64} %fd1, %fd2, %fd3
{fma,mad}.{rn,rz,rm,rp}.f32 %f1, %f2, %f3, %f4
fma.{rn.ftz,rn.sat,rz.ftz.sat}.f32 %f1, %f2, %f3, %f4
{fma,mad}.{rn,rz,rm,rp}.f64 %fd1, %fd2, %fd3, %fd4
div.{approx,approx.ftz,full,full.ftz,rn,rz,rm,rp,rn.ftz}.f32 %f1, %f2, %f3
div.{rn,rz,rm,rp}.f64 %fd1, %fd2, %fd3
{abs,neg}.{f32,ftz.f32} %f1, %f2
{abs,neg}.f64 %fd1, %fd2
{min,max}.{f32,ftz.f32,NaN.f32,ftz.NaN.f32,xorsign.abs.f32,NaN.xorsign.abs.f32} %f1, %f2, %f3
{min,max}.f64 %fd1, %fd2, %fd3
{rcp,sqrt}.{approx,approx.ftz,rn,rz,rm,rp,rn.ftz}.f32 %f1, %f2
{rcp,sqrt}.{rn,rz,rm,rp}.f64 %fd1, %fd2
rcp.approx.ftz.f64 %fd1, %fd2
rsqrt.{approx,approx.ftz}.f32 %f1, %f2
rsqrt.{approx,approx.ftz}.f64 %fd1, %fd2
{sin,cos,lg2,ex2}.{approx,approx.ftz}.f32 %f1, %f2
tanh.approx.f32 %f1, %f2
{add,sub,mul}.{f16,rn.f16,ftz.f16,sat.f16,rn.ftz.sat.f16,bf16,rn.bf16} %h1, %h2, %h3
{add,sub,mul}.{f16x2,rn.f16x2,ftz.f16x2,sat.f16x2,bf16x2,rn.bf16x2} %r1, %r2, %r3
fma.rn.{f16,ftz.f16,sat.f16,relu.f16,ftz.relu.f16,bf16,relu.bf16} %h1, %h2, %h3, %h4
fma.rn.{f16x2,ftz.f16x2,sat.f16x2,relu.f16x2,bf16x2,relu.bf16x2} %r1, %r2, %r3, %r4
{abs,neg}.{f16,ftz.f16,bf16} %h1, %h2
{abs,neg}.{f16x2,ftz.f16x2,bf16x2} %r1, %r2
{min,max}.{f16,ftz.f16,NaN.f16,xorsign.abs.f16,bf16,NaN.bf16,NaN.xorsign.abs.bf16} %h1, %h2, %h3
{min,max}.{f16x2,ftz.NaN.f16x2,xorsign.abs.f16x2,bf16x2,NaN.bf16x2} %r1, %r2, %r3
{tanh.approx,ex2.approx}.f16 %h1, %h2
{tanh.approx,ex2.approx}.f16x2 %r1, %r2
{tanh.approx.bf16,ex2.approx.ftz.bf16} %h1, %h2
{tanh.approx.bf16x2,ex2.approx.ftz.bf16x2} %r1, %r2
"""

COMPARE = """
set.{eq,ne,lt,le,gt,ge,lo,ls,hi,hs}.{u32,s32,f32}.u32 %r1, %r2, %r3
set.{lt.and,eq.or,ge.xor}.u32.{u32,s32} %r1, %r2, %r3, %p1
set.{eq,ltu,num,nan,gt.ftz}.{u32,f32}.f32 %r1, %f2, %f3
set.ne.u32.{u16,s16,b16} %r1, %h2, %h3
set.lt.s32.f64 %r1, %fd2, %fd3
set.eq.{f16,bf16}.{b32,s32} %h1, %r2, %r3
set.lt.{u16,f16,bf16}.f16 %h1, %h2, %h3
set.lt.{u32,ftz.s32}.f16 %r1, %h2, %h3
set.lt.{s16,bf16}.bf16 %h1, %h2, %h3
set.{ltu.and.f16x2.f16x2,ge.or.u32.f16x2} %r1, %r2, %r3, %p1
set.{gt.bf16x2,nan.u32}.bf16x2 %r1, %r2, %r3
setp.{eq,ne,lt,le,gt,ge,lo,ls,hi,hs}.u32 %p1, %r2, %r3
setp.{eq,ne,lt,le,gt,ge}.s64 %p1|%p2, %rd2, %rd3
setp.{lt.and,eq.or,ge.xor}.{u32,s32} %p1|%p2, %r2, %r3, !%p3
setp.{eq,ne,lt,le,gt,ge,equ,neu,ltu,leu,gtu,geu,num,nan}.f32 %p1, %f2, %f3
setp.lt.ftz.f32 %p1, %f2, %f3
setp.num.and.ftz.f32 %p1, %f2, %f3, %p4
setp.{ltu.or}.f64 %p1, %fd2, %fd3, %p4
setp.{eq,ltu,nan,lt.ftz}.f16 %p1, %h2, %h3
setp.eq.f16x2 %p1|%p2, %r2, %r3
setp.ltu.and.f16x2 %p1|%p2, %r2, %r3, %p4
setp.{eq,geu}.bf16 %p1, %h2, %h3
setp.{eq,geu}.bf16x2 %p1|%p2, %r2, %r3
selp.{b16,u16,s16} %h1, %h2, %h3, %p1
selp.{b32,u32,s32} %r1, %r2, %r3, %p1
selp.{b64,u64,s64} %rd1, %rd2, %rd3, %p1
selp.f32 %f1, %f2, %f3, %p1
selp.f64 %fd1, %fd2, %fd3, %p1
slct.{b32,u32,s32}.s32 %r1, %r2, %r3, %r4
slct.{f32,ftz.f32}.f32 %f1, %f2, %f3, %f4
slct.{u64,s64}.f32 %rd1, %rd2, %rd3, %f4
slct.f64.s32 %fd1, %fd2, %fd3, %r4
slct.u16.s32 %h1, %h2, %h3, %r4
{and,or,xor}.b16 %h1, %h2, %h3
{and,or,xor}.b32 %r1, %r2, %r3
{and,or,xor}.b64 %rd1, %rd2, %rd3
{and,or,xor}.pred %p1, %p2, %p3
{not,cnot}.b16 %h1, %h2
{not,cnot}.b32 %r1, %r2
{not,cnot}.b64 %rd1, %rd2
not.pred %p1, %p2
lop3.b32 %r1, %r2, %r3, %r4, 0x1a
lop3.{or,and}.b32 %r1|%p1, %r2, %r3, %r4, 0x80, %p2
lop3.and.b32 _|%p1, %r2, %r3, %r4, 0x80, %p2
shf.{l,r}.{clamp,wrap}.b32 %r1, %r2, %r3, %r4
{shl.b16,shr.b16,shr.u16,shr.s16} %h1, %h2, %r3
{shl.b32,shr.b32,shr.u32,shr.s32} %r1, %r2, %r3
{shl.b64,shr.b64,shr.u64,shr.s64} %rd1, %rd2, %r3
"""

MOVE = """
mov.{b16,u16,s16} %h1, %h2
mov.{b32,u32,s32} %r1, %r2
mov.{b64,u64,s64} %rd1, %rd2
mov.f32 %f1, %f2
mov.f64 %fd1, %fd2
mov.pred %p1, %p2
mov.b32 %r1, {%h1, %h2}
mov.b32 {%h1, %h2}, %r1
mov.b64 %rd1, {%r1, %r2}
mov.b64 {%h1, %h2, %h3, %h4}, %rd1
mov.u32 %r1, buf
mov.u64 %rd1, buf
shfl.sync.{up,down,bfly,idx}.b32 %r1|%p1, %r2, %r3, %r4, -1
shfl.sync.idx.b32 %r1, %r2, 3, 31, -1
prmt.{b32,b32.f4e,b32.b4e,b32.rc8,b32.ecl,b32.ecr,b32.rc16} %r1, %r2, %r3, %r4
ld.global.{b8,u8,s8} %r1, [%rd0]
ld.global.{b16,u16,s16} %h1, [%rd0]
ld{,.weak,.volatile,.relaxed.gpu,.acquire.sys}.global.{b32,u32,s32} %r1, [%rd0]
ld.mmio.relaxed.sys.global.u32 %r1, [%rd0]
ld.global{.ca,.cg,.cs,.lu,.cv,.nc,.ca.nc,.L1::no_allocate,.L1::evict_last,.nc.L1::no_allocate,.L2::128B}.f32 %f1, [%rd0]
ld.global.{L2::cache_hint,nc.L1::evict_first.L2::cache_hint}.f32 %f1, [%rd0], %rd9
ld.global.v2.{b32,u32} {%r1, %r2}, [%rd0]
ld.global.{nc.,}v4.f32 {%f1, %f2, %f3, %f4}, [%rd0]
ld.global.v2.f64 {%fd1, %fd2}, [%rd0]
ld.global.v4.b16 {%h1, %h2, %h3, %h4}, [%rd0]
ld.global.v4.u8 {%r1, %r2, %r3, %r4}, [%rd0]
ld.shared{,::cta,::cluster}.b64 %rd1, [buf]
ld.{relaxed.cluster,acquire.cta}.shared.b32 %r1, [buf]
ld.b32 %r1, [%rd0]
ldu.global.{b32,u32} %r1, [%rd0]
st.global.{b8,u8,s8} [%rd0], %r1
st.global.{b16,u16,s16} [%rd0], %h1
st{,.weak,.volatile,.relaxed.gpu,.release.sys}.global.{b32,u32,s32} [%rd0], %r1
st.global{.wb,.cg,.cs,.wt,.L1::no_allocate,.L1::evict_first}.f32 [%rd0], %f1
st.global.L2::cache_hint.v4.f32 [%rd0], {%f1, %f2, %f3, %f4}, %rd9
st.shared{,::cta,::cluster}.b64 [buf], %rd1
st.mmio.relaxed.sys.global.u32 [%rd0], %r1
prefetch.{global.L1,global.L2,L1,L2,global.L2::evict_last,global.L2::evict_normal} [%rd0]
prefetchu.L1 [%rd0]
applypriority.global.L2::evict_normal [%rd0], 128
discard.global.L2 [%rd0], 128
createpolicy.fractional.{L2::evict_last,L2::evict_first,L2::evict_last.L2::evict_unchanged}.b64 %rd1, 0.5
createpolicy.fractional.L2::evict_last.b64 %rd1
createpolicy.range.global.L2::evict_last.L2::evict_unchanged.b64 %rd1, [%rd0], 64, 128
createpolicy.cvt.L2.b64 %rd1, %rd2
isspacep.{const,global,local,shared,shared::cta,shared::cluster,param} %p1, %rd0
cvta.{const,global,local,shared,shared::cta,shared::cluster,to.global,to.shared,to.local,to.const}.u64 %rd1, %rd2
cvt.{rni,rzi,rmi,rpi,rzi.ftz}.{s32,u32}.f32 %r1, %f2
cvt.{rni,rzi}.{s64,u64}.f64 %rd1, %fd2
cvt.rzi.{s16,u16}.{f16,bf16} %h1, %h2
cvt.{rn,rz,rm,rp}.f32.{s32,u32} %f1, %r2
cvt.rn.{f16,bf16}.{s32,u32} %h1, %r2
cvt.{rn,rz}.f32.f64 %f1, %fd2
cvt.f64.f32 %fd1, %f2
cvt.{f32.f16,ftz.f32.f16,f32.bf16,ftz.f32.bf16} %f1, %h2
cvt.{rn,rz,rm,rp}.f16.f32 %h1, %f2
cvt.{rn,rz,rn.relu,rn.satfinite,rz.relu.satfinite}.{f16,bf16}.f32 %h1, %f2
cvt.{rn,rz,rn.relu,rn.relu.satfinite}.{f16x2,bf16x2}.f32 %r1, %f2, %f3
cvt.{rna,rn,rz,rn.relu,rna.satfinite}.tf32.f32 %r1, %f2
cvt.rn.satfinite.{e4m3x2,e5m2x2}.f32 %h1, %f2, %f3
cvt.rn.satfinite.relu.{e4m3x2,e5m2x2}.f32 %h1, %f2, %f3
cvt.rn.satfinite.{e4m3x2,e5m2x2}.f16x2 %h1, %r2
cvt.rn.{f16x2,relu.f16x2}.{e4m3x2,e5m2x2} %r1, %h2
cvt.{rni,rzi,rmi,rpi,rni.ftz}.f32.f32 %f1, %f2
cvt.{sat,ftz.sat,ftz}.f32.f32 %f1, %f2
cvt.rn.sat.f32.f64 %f1, %fd2
cvt.{s8,u8}.s32 %r1, %r2
cvt.sat.{s8,u8,s16,u16}.s32 %r1, %r2
cvt.{s64,u64}.s32 %rd1, %r2
cvt.{u32.u64,s32.s64,sat.s32.s64} %r1, %rd2
cvt.rn.bf16.f16 %h1, %h2
cvt.rn.bf16.f64 %h1, %fd2
cvt.f64.bf16 %fd1, %h2
cvt.pack.sat.{u16,s16}.s32 %r1, %r2, %r3
cvt.pack.sat.{u2,s2,u4,s4,u8,s8}.s32.b32 %r1, %r2, %r3, %r4
"""

SYNCHRONISE = """
bar.sync 0
bar.sync 1, 64
bar.arrive 1, 64
bar.red.popc.u32 %r1, 0, %p1
bar.red.{and,or}.pred %p1, 0, !%p2
bar.cta.sync 0
barrier.{sync,cta.sync,sync.aligned} 0
barrier.{arrive,cta.arrive.aligned} 1, 64
barrier.cta.red.popc.aligned.u32 %r1, 1, 64, %p1
bar.warp.sync -1
membar.{cta,gl,sys} #
fence.{sc.cta,sc.gpu,acq_rel.cta,acq_rel.gpu,acq_rel.sys,acq_rel.cluster,proxy.alias,proxy.async} #
fence.proxy.{async.global,async.shared::cta,async.shared::cluster} #
fence.mbarrier_init.release.cluster #
vote.sync.{all,any,uni}.pred %p1, %p2, -1
vote.sync.ballot.b32 %r1, %p2, -1
match.any.sync.b32 %r1, %r2, -1
match.all.sync.b64 %r1|%p1, %rd2, -1
activemask.b32 %r1
redux.sync.{add,min,max}.{u32,s32} %r1, %r2, -1
redux.sync.{and,or,xor}.b32 %r1, %r2, -1
elect.sync %r1|%p1, -1
griddepcontrol.{launch_dependents,wait} #
nanosleep.u32 20
nanosleep.u32 %r1
pmevent 1
atom{,.relaxed.gpu,.acquire.sys,.release.cta,.acq_rel.cluster}.global.add.u32 %r1, [%rd0], %r2
atom.global.{add.s32,and.b32,or.b32,xor.b32,exch.b32,inc.u32,dec.u32,min.u32,min.s32,max.u32,max.s32} %r1, [%rd0], %r2
atom.shared{,::cta,::cluster}.add.u32 %r1, [buf], %r2
atom.global.cas.b16 %h1, [%rd0], %h2, %h3
atom.global.cas.b32 %r1, [%rd0], %r2, %r3
atom.global.cas.b64 %rd1, [%rd0], %rd2, %rd3
atom.global.{add.u64,exch.b64,and.b64,or.b64,xor.b64,min.u64,max.s64} %rd1, [%rd0], %rd2
atom.global.add.f32 %f1, [%rd0], %f2
atom.shared.add.f64 %fd1, [buf], %fd2
atom.global.add.L2::cache_hint.f32 %f1, [%rd0], %f2, %rd9
atom.global.add.noftz.{f16,bf16} %h1, [%rd0], %h2
atom.global.add.noftz.{f16x2,bf16x2} %r1, [%rd0], %r2
atom.global.v2.f32.add {%f1, %f2}, [%rd0], {%f3, %f4}
atom.global.v4.f32.add {%f1, %f2, %f3, %f4}, [%rd0], {%f5, %f6, %f7, %f8}
atom.global.v2.{f16,bf16}.{add,min,max}.noftz {%h1, %h2}, [%rd0], {%h3, %h4}
atom.global.v2.{f16x2,bf16x2}.{add,min,max}.noftz {%r1, %r2}, [%rd0], {%r3, %r4}
red{,.relaxed.gpu,.release.sys}.global.add.u32 [%rd0], %r2
red.global.{add.s32,and.b32,or.b32,xor.b32,inc.u32,dec.u32,min.u32,max.s32} [%rd0], %r2
red.global.{add.u64,and.b64,min.s64} [%rd0], %rd2
red.{global.add.f32,shared.add.f32} [%rd0], %f2
red.global.add.f64 [%rd0], %fd2
red.global.add.noftz.{f16,bf16} [%rd0], %h2
red.global.add.noftz.{f16x2,bf16x2} [%rd0], %r2
red.global.v2.f32.add [%rd0], {%f3, %f4}
red.global.v4.f32.add.L2::cache_hint [%rd0], {%f3, %f4, %f5, %f6}, %rd9
red.global.v4.{f16,bf16}.max.noftz [%rd0], {%h1, %h2, %h3, %h4}
red.global.v8.{f16,bf16}.add.noftz [%rd0], {%h1, %h2, %h3, %h4, %h5, %h6, %h7, %h8}
red.global.v4.{f16x2,bf16x2}.min.noftz [%rd0], {%r1, %r2, %r3, %r4}
cp.async.{ca,cg}.shared.global [buf], [%rd0], 16
cp.async.ca.shared.global{,.L2::128B} [buf], [%rd0], 8, %r1
cp.async.ca.shared.global [buf], [%rd0], 4, %p1
cp.async.cg.shared.global.L2::cache_hint [buf], [%rd0], 16, %rd9
cp.async.{commit_group,wait_all} #
cp.async.wait_group 1
cp.async.mbarrier.arrive{,.noinc}.shared.b64 [buf]
mbarrier.init{,.shared,.shared::cta}.b64 [buf], 1
mbarrier.inval.shared.b64 [buf]
mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [buf], 16
mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [buf], 16
mbarrier.arrive.shared{,::cta}.b64 %rd1, [buf]
mbarrier.arrive.release.cta.shared::cta.b64 %rd1, [buf], 2
mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r1]
mbarrier.arrive.expect_tx.shared::cta.b64 %rd1, [buf], 16
mbarrier.arrive.expect_tx.release.cluster.shared::cluster.b64 _, [%r1], 16
mbarrier.arrive.noComplete.shared.b64 %rd1, [buf], 1
mbarrier.arrive_drop.{shared.b64,shared::cta.b64} %rd1, [buf]
mbarrier.arrive_drop.expect_tx.shared::cta.b64 %rd1, [buf], 16
mbarrier.{test_wait,try_wait}.shared.b64 %p1, [buf], %rd1
mbarrier.{test_wait,try_wait}.parity.shared::cta.b64 %p1, [buf], %r1
mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %p1, [buf], %r1, 1000
mbarrier.pending_count.b64 %r1, %rd1
barrier.cluster.{arrive,arrive.release,arrive.relaxed,arrive.aligned,wait,wait.acquire,wait.acquire.aligned} #
mapa.{u64} %rd1, %rd2, %r3
mapa.shared::cluster.u32 %r1, %r2, %r3
getctarank.u64 %r1, %rd2
getctarank.shared::cluster.u32 %r1, %r2
st.async.shared::cluster.mbarrier::complete_tx::bytes.{b32,u32} [%r1], %r2, [%r3]
st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%r1], {%r4, %r5, %r6, %r7}, [%r3]
red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.{add.u32,min.s32,xor.b32} [%r1], %r2, [%r3]
cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [buf], [%rd0], 64, [%r3]
cp.async.bulk.global.shared::cta.bulk_group [%rd0], [buf], 64
cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%r1], [%r2], 64, [%r3]
cp.reduce.async.bulk.global.shared::cta.bulk_group.{add.f32,add.u32,min.s32,add.u64} [%rd0], [buf], 64
cp.reduce.async.bulk.global.shared::cta.bulk_group.add.noftz.{f16,bf16} [%rd0], [buf], 64
cp.async.bulk.prefetch.L2.global [%rd0], 64
cp.async.bulk.commit_group #
cp.async.bulk.wait_group{,.read} 0
setmaxnreg.{inc,dec}.sync.aligned.u32 104
ldmatrix.sync.aligned.m8n8.x1{,.trans}.shared{,::cta}.b16 {%r1}, [buf]
ldmatrix.sync.aligned.m8n8.x2{,.trans}.shared.b16 {%r1, %r2}, [buf]
ldmatrix.sync.aligned.m8n8.x4{,.trans}.shared.b16 {%r1, %r2, %r3, %r4}, [buf]
stmatrix.sync.aligned.m8n8.x1{,.trans}.shared{,::cta}.b16 [buf], {%r1}
stmatrix.sync.aligned.m8n8.x2{,.trans}.shared.b16 [buf], {%r1, %r2}
stmatrix.sync.aligned.m8n8.x4{,.trans}.shared.b16 [buf], {%r1, %r2, %r3, %r4}
movmatrix.sync.aligned.m8n8.trans.b16 %r1, %r2
wgmma.{fence,commit_group}.sync.aligned #
wgmma.wait_group.sync.aligned 1
"""

WIDE = """
mov.b128 %rq0, {%rd1, %rd2}
mov.b128 {%rd1, %rd2}, %rq0
ld.global.b128 %rq0, [%rd0]
st.global.b128 [%rd0], %rq0
atom.global.exch.b128 %rq0, [%rd0], %rq1
atom.global.cas.b128 %rq0, [%rd0], %rq1, %rq1
"""


def lines(text: str) -> list[str]:
    """Every instruction of a group, expanded; `#` stands for no operands."""
    out = []
    for line in text.strip().splitlines():
        for x in expand(line):
            out.append(x.removesuffix(" #") + ";")
    return out


GROUPS = {"arithmetic": ARITHMETIC, "float": FLOAT, "compare": COMPARE, "move": MOVE, "synchronise": SYNCHRONISE,
          "wide": WIDE}  # fmt: skip
