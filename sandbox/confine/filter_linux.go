package confine

import (
	"cmp"
	"errors"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A policy is what the kernel does with each system call of the native interface.
// Every other one is a call without a rule; those of x32 are ENOSYS.
type policy struct {
	rules []rule
	rest  verdict // of a call for which no rule holds
}

// A rule is about one call, by its number. Of several for one call the first that holds
// counts.
type rule struct {
	call uint32
	then verdict
	when []condition // all of them
}

// A condition looks at an argument, and never at what it points to: another thread
// could change that between the check and the use.
type condition struct {
	argument    uint32 // from 0
	mask, value uint64 // argument & mask == value
}

func equal(argument uint32, v uint64) condition { return condition{argument, ^uint64(0), v} }
func noneOf(argument uint32, bits uint64) condition {
	return condition{argument, bits, 0}
}

// A verdict is what a filter returns.
type verdict uint32

const (
	allow  verdict = unix.SECCOMP_RET_ALLOW
	notify verdict = unix.SECCOMP_RET_USER_NOTIF // the call waits for whoever holds the listener
)

func refuse(e unix.Errno) verdict { return unix.SECCOMP_RET_ERRNO | verdict(e) }

// assemble writes the program of a policy. It finds the call's number by halves: the
// kernel runs the program for each number there is when it installs it, and for each call
// that has conditions. A block that looks at arguments ends with a verdict or goes on with
// the next rule of the same call, so that nothing ever takes an argument for a number.
func (p policy) assemble() []unix.SockFilter {
	return append([]unix.SockFilter{
		load(4), // the architecture, in struct seccomp_data
		jump(unix.BPF_JEQ, architecture, 1, 0),
		give(p.rest),
		load(0), // the number
	}, choose(p.spans())...)
}

// A span is numbers with one answer, up to the next span.
type span struct {
	from uint32
	code []unix.SockFilter
}

// spans covers all numbers.
func (p policy) spans() []span {
	rules := slices.Clone(p.rules)
	slices.SortStableFunc(rules, func(a, b rule) int { return cmp.Compare(a.call, b.call) })
	rest := []unix.SockFilter{give(p.rest)}
	list := []span{{0, rest}}
	for len(rules) > 0 {
		call, n := rules[0].call, 1
		for n < len(rules) && rules[n].call == call {
			n++
		}
		list = then(then(list, call, p.decide(rules[:n])), call+1, rest)
		rules = rules[n:]
	}
	if foreign != 0 {
		list = then(list, foreign, []unix.SockFilter{give(refuse(unix.ENOSYS))})
	}
	return list
}

// then adds the numbers from here on. Neighbours with the same answer are one span.
func then(list []span, from uint32, code []unix.SockFilter) []span {
	if list[len(list)-1].from == from {
		list = list[:len(list)-1]
	}
	if n := len(list); n > 0 && slices.Equal(list[n-1].code, code) {
		return list
	}
	return append(list, span{from, code})
}

// decide is the program of one call.
func (p policy) decide(rules []rule) (code []unix.SockFilter) {
	for _, r := range rules {
		block := r.block()
		code = append(code, block...)
		if len(r.when) == 0 { // it holds
			return code
		}
	}
	return append(code, give(p.rest))
}

// block gives the verdict of a rule if it holds, and ends otherwise.
func (r rule) block() (code []unix.SockFilter) {
	const arguments = 16 // in struct seccomp_data, 8 bytes each
	for _, c := range r.when {
		// Little-endian, as both architectures: the low half comes first.
		for i, half := range []struct{ mask, value uint32 }{{uint32(c.mask), uint32(c.value)}, {uint32(c.mask >> 32), uint32(c.value >> 32)}} {
			if half.mask == 0 && half.value == 0 {
				continue
			}
			code = append(code, load(arguments+8*c.argument+4*uint32(i)))
			if half.mask != ^uint32(0) {
				code = append(code, unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: half.mask})
			}
			code = append(code, jump(unix.BPF_JEQ, half.value, 0, 0))
		}
	}
	code = append(code, give(r.then))
	for i := range code {
		if code[i].Code&0x07 == unix.BPF_JMP { // where it does not hold, to the end
			code[i].Jf = uint8(len(code) - 1 - i)
		}
	}
	return code
}

// choose finds the span of the number that is loaded.
func choose(list []span) []unix.SockFilter {
	if len(list) == 1 {
		return list[0].code
	}
	half := len(list) / 2
	below, above := choose(list[:half]), choose(list[half:])
	code := []unix.SockFilter{jump(unix.BPF_JGE, list[half].from, 0, 1), {Code: unix.BPF_JMP | unix.BPF_JA, K: uint32(len(below))}}
	return append(append(code, below...), above...)
}

func load(offset uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
}

// jump skips so many instructions where the comparison holds, and where it does not.
func jump(comparison uint16, v uint32, holds, not uint8) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | comparison | unix.BPF_K, Jt: holds, Jf: not, K: v}
}

func give(v verdict) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: uint32(v)}
}

// install puts a filter on every thread. If it notifies it returns the listener:
// forbidden calls then wait for the answer of whoever holds it, and return ENOSYS
// once nobody does.
func (p policy) install() (listener int, err error) {
	code := p.assemble()
	prog := unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
	if p.rest != notify {
		return set(&prog, unix.SECCOMP_FILTER_FLAG_TSYNC)
	}
	const listen = unix.SECCOMP_FILTER_FLAG_TSYNC | unix.SECCOMP_FILTER_FLAG_TSYNC_ESRCH | unix.SECCOMP_FILTER_FLAG_NEW_LISTENER
	// WAIT_KILLABLE_RECV (5.19) keeps preemption signals from repeating a report.
	listener, err = set(&prog, listen|unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV)
	if errors.Is(err, unix.EINVAL) {
		listener, err = set(&prog, listen)
	}
	return listener, err
}

func set(prog *unix.SockFprog, flags uintptr) (int, error) {
	r, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(prog)))
	if e != 0 {
		return -1, e
	}
	return int(r), nil
}
