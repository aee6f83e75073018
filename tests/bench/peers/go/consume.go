// SPDX-License-Identifier: Apache-2.0

// The Go peer: cilium/ebpf's perf.Reader with ReadInto, which reuses its
// buffer, and a decoder that overlays structs on the sample (the fastest thing
// a Go program can do; encoding/binary is far slower).
//
//	consume MAP_FD PAGES
//
// Commands on stdin: "drain MODE EXPECTED checked|unchecked" (it always sums); each is answered by one JSON object.
package main

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/perf"
)

type header struct {
	Time    uint64
	Module  uint16
	Message uint16
	Length  uint16
	CPU     uint16
}

type beat struct {
	header
	Sequence uint64
	Value    uint64
	Pid      uint32
	Uid      uint32
}

type renamed struct {
	header
	Sequence  uint64
	Pid       uint32
	ParentPid uint32
	Comm      [16]byte
}

type moved struct {
	header
	Sequence   uint64
	FromCgroup uint64
	ToCgroup   uint64
	Pid        uint32
	Uid        uint32
	Flags      uint32
	Depth      uint32
}

type opened struct {
	header
	Sequence uint64
	Cookie   uint64
	Pid      uint32
	Uid      uint32
	Family   uint16
	Kind     uint16
	Port     uint16
	Backlog  uint16
	Comm     [16]byte
}

type connected struct {
	header
	Sequence        uint64
	Cookie          uint64
	Pid             uint32
	Uid             uint32
	Family          uint16
	State           uint16
	SourcePort      uint16
	DestinationPort uint16
	Source          [16]byte
	Destination     [16]byte
}

type exited struct {
	header
	Sequence   uint64
	Start      uint64
	Duration   uint64
	CgroupID   uint64
	Pid        uint32
	ParentPid  uint32
	Uid        uint32
	ExitCode   uint32
	Comm       [16]byte
	Executable [32]byte
}

type tally struct {
	Events, Lost, Malformed, Sequence, Checksum uint64

	comm                [16]byte
	executable          [32]byte
	source, destination [16]byte
}

func (t *tally) decode(sample []byte) {
	if len(sample) < 16 {
		t.Malformed++
		return
	}
	start := unsafe.Pointer(&sample[0])
	if len(sample) < int((*header)(start).Length) {
		t.Malformed++
		return
	}
	switch (*header)(start).Message {
	case 1:
		m := (*beat)(start)
		t.Sequence += m.Sequence
		t.Checksum += m.Value + uint64(m.Pid) + uint64(m.Uid)
	case 2:
		m := (*renamed)(start)
		t.Sequence += m.Sequence
		t.Checksum += uint64(m.Pid) + uint64(m.ParentPid) + uint64(m.Comm[0])
		t.comm = m.Comm
	case 3:
		m := (*moved)(start)
		t.Sequence += m.Sequence
		t.Checksum += m.FromCgroup + m.ToCgroup
		t.Checksum += uint64(m.Pid) + uint64(m.Uid) + uint64(m.Flags) + uint64(m.Depth)
	case 4:
		m := (*opened)(start)
		t.Sequence += m.Sequence
		t.Checksum += m.Cookie + uint64(m.Pid) + uint64(m.Uid) + uint64(m.Family)
		t.Checksum += uint64(m.Kind) + uint64(m.Port) + uint64(m.Backlog) + uint64(m.Comm[0])
		t.comm = m.Comm
	case 5:
		m := (*connected)(start)
		t.Sequence += m.Sequence
		t.Checksum += m.Cookie + uint64(m.Pid) + uint64(m.Uid) + uint64(m.Family)
		t.Checksum += uint64(m.State) + uint64(m.SourcePort) + uint64(m.DestinationPort)
		t.Checksum += uint64(m.Source[0]) + uint64(m.Destination[0])
		t.source, t.destination = m.Source, m.Destination
	case 6:
		m := (*exited)(start)
		t.Sequence += m.Sequence
		t.Checksum += m.Start + m.Duration + m.CgroupID
		t.Checksum += uint64(m.Pid) + uint64(m.ParentPid) + uint64(m.Uid) + uint64(m.ExitCode)
		t.Checksum += uint64(m.Comm[0]) + uint64(m.Executable[0])
		t.comm, t.executable = m.Comm, m.Executable
	default:
		t.Malformed++
	}
}

// The reader blocks when nothing is left, so it is told how many to expect.
func drain(reader *perf.Reader, expected uint64) (*tally, time.Duration, error) {
	var record perf.Record
	t := &tally{}
	started := time.Now()
	for t.Events+t.Lost < expected {
		if err := reader.ReadInto(&record); err != nil {
			return nil, 0, err
		}
		if record.LostSamples != 0 {
			t.Lost += record.LostSamples
			continue
		}
		t.Events++
		t.decode(record.RawSample)
	}
	return t, time.Since(started), nil
}

func serve(reader *perf.Reader) error {
	fmt.Println("ready")
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if len(words) < 3 {
			return fmt.Errorf("not a command: %q", lines.Text())
		}
		expected, err := strconv.ParseUint(words[2], 10, 64)
		if err != nil {
			return err
		}
		t, took, err := drain(reader, expected)
		if err != nil {
			return err
		}
		fmt.Printf("{\"ns\": %d, \"events\": %d, \"lost\": %d, \"malformed\": %d, "+
			"\"sequence\": %d, \"checksum\": %d}\n",
			took.Nanoseconds(), t.Events, t.Lost, t.Malformed, t.Sequence, t.Checksum)
	}
	return lines.Err()
}

func run(arguments []string) error {
	if len(arguments) != 3 {
		return fmt.Errorf("usage: consume MAP_FD PAGES")
	}
	fd, err := strconv.Atoi(arguments[1])
	if err != nil {
		return err
	}
	pages, err := strconv.Atoi(arguments[2])
	if err != nil {
		return err
	}
	events, err := ebpf.NewMapFromFD(fd)
	if err != nil {
		return err
	}
	reader, err := perf.NewReader(events, pages*os.Getpagesize())
	if err != nil {
		return err
	}
	defer reader.Close()
	return serve(reader)
}

func main() {
	if err := run(os.Args); err != nil {
		fmt.Fprintln(os.Stderr, "consume:", err)
		os.Exit(1)
	}
}
