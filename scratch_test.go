package batchnorm

import "testing"

// TestPool: a pool has an element for each task, for more tasks than were said too, with
// the room that the largest call asks for, and allocates nothing after the first of them.
func TestPool(t *testing.T) {
	var p taskPool[*rowScratch]
	small := quota[*rowScratch]{pool: &p, n: 2, room: lanes, make: newRowScratch}
	large := quota[*rowScratch]{pool: &p, n: 3, room: 3 * lanes, make: newRowScratch}
	taken := map[*rowScratch]bool{}
	for range small.n + 2 {
		v := small.take()
		if v == nil || taken[v] || v.room() != small.room {
			t.Fatalf("two tasks have the same element, or one has none, or one without room: %v", v)
		}
		taken[v] = true
	}
	v := large.take()
	if taken[v] || v.room() != large.room {
		t.Fatalf("a larger call has an element in use, or with room for %d, want %d", v.room(), large.room)
	}
	large.give(v)
	for v := range taken { // they are too small by now
		small.give(v)
	}
	if p.made != len(p.free) {
		t.Errorf("%d elements were made, %d came back", p.made, len(p.free))
	}
	for _, v := range p.free {
		if v.room() < large.room {
			t.Errorf("an element has room for %d, want %d", v.room(), large.room)
		}
	}
	if !raceEnabled {
		if n := testing.AllocsPerRun(5, func() {
			a, b := small.take(), large.take()
			small.give(a)
			large.give(b)
		}); n != 0 {
			t.Errorf("calls allocate %v times", n)
		}
	}
}
