package batchnorm

import (
	"errors"
	"fmt"
	"math"
	"sync"
	"time"
)

// A Collective connects the processes, or goroutines, that train one network
// together. They are its ranks, from 0 to Size()-1, and every rank has a
// Collective of its own. It is the transport of a [SyncGroup]: this package has
// [LocalCollective] for goroutines, and its module mpi has one for processes on any
// number of machines.
//
// An implementation keeps these rules:
//
//   - Vectors between two ranks arrive in the order in which they were sent. Call
//     number n of Exchange on one rank meets call number n on all others.
//   - Exchange waits for a late rank, up to a time limit that the implementation
//     states. After the limit, or when a rank has ended or the connection is lost, it
//     returns an error that wraps [ErrExchange] and names the rank.
//   - A vector may have another length than the receiver expects. Then the elements
//     that both lengths have are received, all other vectors of the call are sent and
//     received as usual, and Exchange returns an error that wraps [ErrRanks] and says
//     from which rank how many elements came.
//   - After an error that wraps ErrExchange every later call returns an error too.
type Collective interface {
	// Rank returns the number of this rank.
	Rank() int

	// Size returns the number of ranks.
	Size() int

	// Exchange sends send[i] to rank i and receives a vector from rank i into
	// recv[i], for all i at once, and returns when that is done. Both have Size()
	// elements. The lengths on the two sides have to agree; an empty vector is neither
	// sent nor received. Vectors from a rank to itself are empty.
	//
	// The elements keep their bits. Exchange does not write to send, and keeps none of
	// the slices. One call runs at a time.
	Exchange(recv, send [][]float64) error
}

// DefaultTimeout is how long a rank waits for the others, unless its collective
// is made with another limit.
const DefaultTimeout = 5 * time.Minute

// A LocalCollective connects goroutines of one process. Each rank is for one
// goroutine at a time.
type LocalCollective struct {
	rank   int
	group  *localGroup
	timer  *time.Timer
	splits int
}

// localGroup is the state that the ranks of a LocalCollective share.
type localGroup struct {
	size    int
	timeout time.Duration
	links   []localLink // from rank i to rank k: i*size + k

	broken chan struct{} // closed when a rank has given up
	once   sync.Once
	cause  error // why; set before broken is closed

	mu     sync.Mutex
	splits map[localSplit]*localGroup
}

// A localLink carries vectors from one rank to another, in one buffer: the sender takes
// it from empty and puts it into full, the receiver the other way round.
type localLink struct{ full, empty chan []float64 }

// localSplit names a group that Split has made.
type localSplit struct{ number, color int }

// NewLocalCollective connects this number of goroutines, and returns the collective of
// each rank. A rank that waits longer than the timeout for another one gives up. Then
// all ranks get an error: those that wait get it at once, the others from their next
// call. A timeout of 0 is [DefaultTimeout].
func NewLocalCollective(ranks int, timeout time.Duration) ([]*LocalCollective, error) {
	switch {
	case ranks < 1:
		return nil, fail(ErrOption, "a collective has %d ranks, must be at least 1", ranks)
	case timeout < 0:
		return nil, fail(ErrOption, "the timeout of a collective is %v, must be at least 0", timeout)
	case timeout == 0:
		timeout = DefaultTimeout
	}
	g := newLocalGroup(ranks, timeout)
	all := make([]*LocalCollective, ranks)
	for i := range all {
		all[i] = g.join(i)
	}
	return all, nil
}

func newLocalGroup(size int, timeout time.Duration) *localGroup {
	g := &localGroup{
		size: size, timeout: timeout, links: make([]localLink, size*size),
		broken: make(chan struct{}), splits: map[localSplit]*localGroup{},
	}
	for i := range g.links {
		if i/size == i%size {
			continue
		}
		l := localLink{make(chan []float64, 1), make(chan []float64, 1)}
		l.empty <- nil
		g.links[i] = l
	}
	return g
}

func (g *localGroup) join(rank int) *LocalCollective {
	timer := time.NewTimer(time.Hour)
	timer.Stop()
	return &LocalCollective{rank: rank, group: g, timer: timer}
}

// Rank returns the number of this rank.
func (l *LocalCollective) Rank() int { return l.rank }

// Size returns the number of ranks.
func (l *LocalCollective) Size() int { return l.group.size }

// Timeout returns how long a call waits for other ranks.
func (l *LocalCollective) Timeout() time.Duration { return l.group.timeout }

// Exchange implements [Collective]. It allocates only until every link's buffer
// is as long as the longest vector.
func (l *LocalCollective) Exchange(recv, send [][]float64) error {
	if err := checkVectors(l, recv, send); err != nil {
		return err
	}
	g := l.group
	select {
	case <-g.broken:
		return g.cause
	default:
	}
	l.timer.Reset(g.timeout)
	defer l.timer.Stop()
	for i := range g.size { // each rank begins behind itself, so that not all crowd at rank 0
		to := (l.rank + i) % g.size
		if len(send[to]) == 0 {
			continue
		}
		link := &g.links[l.rank*g.size+to]
		buffer, err := l.take(link.empty, to)
		if err != nil {
			return err
		}
		link.full <- append(buffer[:0], send[to]...)
	}
	var mismatch error
	for i := range g.size {
		from := (l.rank + g.size - i) % g.size
		if len(recv[from]) == 0 {
			continue
		}
		link := &g.links[from*g.size+l.rank]
		buffer, err := l.take(link.full, from)
		if err != nil {
			return err
		}
		copy(recv[from], buffer)
		if len(buffer) != len(recv[from]) && mismatch == nil {
			mismatch = WrongVector(l.rank, from, len(buffer), len(recv[from]))
		}
		link.empty <- buffer
	}
	return mismatch
}

// take waits for a buffer that the other rank puts into a link.
func (l *LocalCollective) take(from chan []float64, other int) ([]float64, error) {
	select { // a buffer that is there already goes before the other cases
	case buffer := <-from:
		return buffer, nil
	default:
	}
	g := l.group
	select {
	case buffer := <-from:
		return buffer, nil
	case <-g.broken:
		return nil, g.cause
	case <-l.timer.C:
		g.once.Do(func() {
			g.cause = fail(ErrExchange, "rank %d of %d has waited for rank %d longer than %v", l.rank, g.size, other, g.timeout)
			close(g.broken)
		})
		return nil, g.cause
	}
}

// Split makes a collective of the ranks with the same color, for statistics over some
// of the ranks. All ranks call it, each with a color of its choice; the new ranks are
// in the order of the old ones. A rank whose color is below 0 joins none, and gets nil.
func (l *LocalCollective) Split(color int) (*LocalCollective, error) {
	g := l.group
	all := make([]float64, g.size)
	recv, send := make([][]float64, g.size), make([][]float64, g.size)
	for i := range all {
		if i != l.rank {
			recv[i], send[i] = all[i:][:1], []float64{float64(color)}
		}
	}
	if err := l.Exchange(recv, send); err != nil {
		return nil, err
	}
	all[l.rank] = float64(color)
	number := l.splits
	l.splits++
	if color < 0 {
		return nil, nil
	}
	rank, size := 0, 0
	for i, c := range all {
		if c == float64(color) {
			if i < l.rank {
				rank++
			}
			size++
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	name := localSplit{number, color}
	split := g.splits[name]
	if split == nil {
		split = newLocalGroup(size, g.timeout)
		g.splits[name] = split
	}
	if rank == size-1 && size == 1 {
		delete(g.splits, name)
	}
	return split.join(rank), nil
}

// checkVectors validates the arguments of Exchange.
func checkVectors(c Collective, recv, send [][]float64) error {
	rank, size := c.Rank(), c.Size()
	if len(recv) != size || len(send) != size {
		return fail(ErrLength, "recv has %d vectors and send %d, the collective has %d ranks", len(recv), len(send), size)
	}
	if len(recv[rank]) != 0 || len(send[rank]) != 0 {
		return fail(ErrLength, "rank %d sends %d elements to itself and receives %d, both must be 0", rank, len(send[rank]), len(recv[rank]))
	}
	return nil
}

// WrongVector returns the error of a [Collective] on a rank that got a vector of
// another length than it wants from the rank named. It wraps [ErrRanks].
func WrongVector(rank, from, got, want int) error {
	return fail(ErrRanks, "rank %d expects %d elements from rank %d, got %d: the ranks differ in shape or operation", rank, want, from, got)
}

// ---- groups

// A SyncGroup is the ranks of a [Collective] that share their statistics. Every
// rank makes one; the plans and layers of all ranks that belong together are
// made on it in the same order, and called in the same order.
//
// No rank waits forever: every exchange compares the operations of all ranks. If a
// rank calls another operation, has another number of channels, is a call behind, or
// was given wrong arguments, each rank gets an error that wraps [ErrRanks]. If a rank
// does not call at all, the others get one that wraps [ErrExchange]. A call has two
// exchanges, and so returns after at most two time limits of the collective, once the
// passes begun before it are over. An error ends the group: every later call on it
// returns the same error.
type SyncGroup struct {
	collective Collective
	rank, size int

	mu     sync.Mutex
	moved  sync.Cond // turn has changed
	issued uint64    // tickets of exchanges that were begun
	turn   uint64    // the ticket of the exchange that runs or is next
	plans  int
	err    error // of the first exchange that failed

	sum *exchange // of AllReduce
}

// NewSyncGroup makes the group of all ranks of a collective. For a group of some of
// the ranks (ghost batches over processes), split the collective first. Nothing else
// may use the collective while exchanges of the group are under way.
func NewSyncGroup(c Collective) (*SyncGroup, error) {
	if c == nil {
		return nil, fail(ErrMissing, "the collective of a group is missing")
	}
	g := &SyncGroup{collective: c, rank: c.Rank(), size: c.Size()}
	if g.size < 1 || g.rank < 0 || g.rank >= g.size {
		return nil, fail(ErrOption, "the collective says rank %d of %d", g.rank, g.size)
	}
	g.moved.L = &g.mu
	return g, nil
}

// Rank returns the number of this rank.
func (g *SyncGroup) Rank() int { return g.rank }

// Size returns the number of ranks.
func (g *SyncGroup) Size() int { return g.size }

// Err returns the error that has ended the group, or nil.
func (g *SyncGroup) Err() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.err
}

func (g *SyncGroup) ready() error {
	if g == nil || g.collective == nil {
		return fail(ErrNilPlan, "group is nil or was not made by NewSyncGroup")
	}
	return nil
}

// AllReduce replaces x by the sum of the x of all ranks, for example the gradients of
// other layers in data-parallel training. All have the same length. The sum is taken
// in float64 in the order of the ranks and rounded once, so that every rank gets the
// same bits in every run. Each rank sends and receives about 16 bytes per element, for
// any number of ranks.
//
// It allocates only when x is longer than in all calls before.
func (g *SyncGroup) AllReduce(x []float32) error {
	if err := g.ready(); err != nil {
		return err
	}
	if g.sum == nil {
		g.sum = newExchange(g, 0, 1, len(x))
	}
	e := g.sum
	e.resize(len(x))
	for i, v := range x {
		e.values[0][i] = float64(v)
	}
	e.begin(kindSum, len(x))
	if err := e.run(); err != nil {
		return err
	}
	for i, v := range e.values[0] {
		x[i] = float32(v)
	}
	return nil
}

// exchangeKind is the purpose of an exchange.
type exchangeKind int

const (
	kindRefused exchangeKind = 1 + iota // the caller's arguments are wrong
	kindForward
	kindBackward
	kindSum
)

func (k exchangeKind) String() string {
	switch k {
	case kindRefused:
		return "refuses its arguments for"
	case kindForward:
		return "calls forward of"
	case kindBackward:
		return "calls backward of"
	case kindSum:
		return "calls AllReduce of"
	}
	return fmt.Sprintf("sends the unknown operation %d for", int(k))
}

// Heads of the vectors. All ranks must agree on the values before headCount.
const (
	headKind     = iota
	headPlan     // its number in the group
	headCall     // number of the exchange in the group
	headChannels // of the whole
	headCount    // values per channel of this rank's part
	partHead     // length of a part's head

	headVerdict = 0 // 0: the ranks agree; else 1 + the rank that differs, or 1 + size
	headTotal   = 1 // values per channel of the whole batch
	wholeHead   = 2 // length of a whole's head
)

// An exchange merges values per channel over the ranks, in two steps. First
// every rank sends to each owner the values of the owner's channels, and then every
// owner sends the merged values to all. Each rank owns an equal share of the channels,
// so that its cost does not grow with the number of ranks. An owner merges in the order
// of the ranks.
type exchange struct {
	group    *SyncGroup
	plan     int // its number in the group
	fields   int // values per channel
	channels int
	owners   int // the first ranks own channels; this is their number
	kind     exchangeKind
	ticket   uint64

	count  int          // values per channel: of this rank's part; afterwards of the whole batch
	values [2][]float64 // by field and channel: of this rank's part; afterwards of the whole batch

	// By rank: the parts of this rank's share, and the wholes of all shares.
	parts, wholes [][]float64
	memory        []float64 // of all vectors

	// The vectors of parts and wholes that go to and come from other ranks, by rank.
	partOut, partIn, wholeOut, wholeIn [][]float64

	moments []Moments // by rank, of this rank's share
	sums    []GradSums

	background func() // runs the exchange, and sends its error to done
	done       chan error
}

func newExchange(g *SyncGroup, plan, fields, channels int) *exchange {
	e := &exchange{group: g, plan: plan, fields: fields, done: make(chan error, 1)}
	for _, v := range []*[][]float64{&e.parts, &e.wholes, &e.partOut, &e.partIn, &e.wholeOut, &e.wholeIn} {
		*v = make([][]float64, g.size)
	}
	e.moments, e.sums = make([]Moments, g.size), make([]GradSums, g.size)
	e.background = func() { e.done <- e.run() }
	e.resize(channels)
	return e
}

// share returns the channels [c0, c1) that a rank owns.
func (e *exchange) share(rank int) (c0, c1 int) {
	if rank >= e.owners {
		return e.channels, e.channels
	}
	each, more := e.channels/e.owners, e.channels%e.owners
	c0 = rank*each + min(rank, more)
	c1 = c0 + each
	if rank < more {
		c1++
	}
	return c0, c1
}

// resize lays out the vectors for a number of channels.
func (e *exchange) resize(channels int) {
	if channels == e.channels && e.memory != nil {
		return
	}
	g := e.group
	e.channels, e.owners = channels, min(g.size, max(1, channels))
	c0, c1 := e.share(g.rank)
	own := c1 - c0
	need := e.owners*(partHead+wholeHead) + 3*e.fields*channels + g.size*(partHead+e.fields*own)
	if cap(e.memory) < need {
		e.memory = make([]float64, need)
	}
	rest := e.memory[:need]
	cut := func(n int) []float64 {
		v := rest[:n:n]
		rest = rest[n:]
		return v
	}
	for f := range e.fields {
		e.values[f] = cut(channels)
	}
	owner := g.rank < e.owners
	for rank := range g.size {
		e.parts[rank], e.wholes[rank], e.partOut[rank], e.partIn[rank], e.wholeOut[rank], e.wholeIn[rank] = nil, nil, nil, nil, nil, nil
		if owner {
			e.parts[rank] = cut(partHead + e.fields*own)
		}
		if rank < e.owners {
			c0, c1 := e.share(rank)
			e.wholes[rank] = cut(wholeHead + e.fields*(c1-c0))
			if rank != g.rank {
				e.partOut[rank], e.wholeIn[rank] = cut(partHead+e.fields*(c1-c0)), e.wholes[rank]
			}
		}
		if rank != g.rank {
			e.partIn[rank] = e.parts[rank]
		}
	}
	if owner {
		for rank := range g.size {
			if rank != g.rank {
				e.wholeOut[rank] = e.wholes[g.rank]
			}
		}
	}
}

// begin takes the next ticket in the group. The values are set before.
func (e *exchange) begin(kind exchangeKind, count int) {
	g := e.group
	e.kind, e.count = kind, count
	g.mu.Lock()
	defer g.mu.Unlock()
	e.ticket = g.issued
	g.issued++
}

// run waits for its turn and does the exchange.
func (e *exchange) run() error {
	g := e.group
	g.mu.Lock()
	for g.turn != e.ticket {
		g.moved.Wait()
	}
	err := g.err
	g.mu.Unlock()
	if err == nil {
		err = e.exchange()
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.err == nil {
		g.err = err
	}
	g.turn++
	g.moved.Broadcast()
	return err
}

// exchange does both steps. After it count and values are those of the whole batch.
func (e *exchange) exchange() error {
	g := e.group
	for rank := range e.owners {
		part := e.partOut[rank]
		if rank == g.rank {
			part = e.parts[rank]
		}
		part[headKind], part[headPlan], part[headCall] = float64(e.kind), float64(e.plan), float64(e.ticket)
		part[headChannels], part[headCount] = float64(e.channels), float64(e.count)
		c0, c1 := e.share(rank)
		for f := range e.fields {
			copy(part[partHead+f*(c1-c0):], e.values[f][c0:c1])
		}
	}
	for _, part := range e.partIn {
		if part != nil {
			clear(part[:partHead]) // so that a vector that is too short leaves no old head
		}
	}
	if err := g.exchange(e.partIn, e.partOut); err != nil && !errors.Is(err, ErrRanks) {
		return err
	} else if g.rank < e.owners {
		e.merge(err)
	}
	// A rank that disagrees still takes part in the second step, so that all learn of it.
	err := g.exchange(e.wholeIn, e.wholeOut)
	if err != nil && !errors.Is(err, ErrRanks) {
		return err
	}
	if verdict := e.verdict(); verdict != nil {
		return verdict
	}
	if err != nil {
		return err
	}
	e.count = int(e.wholes[0][headTotal])
	for rank := range e.owners {
		c0, c1 := e.share(rank)
		for f := range e.fields {
			copy(e.values[f][c0:c1], e.wholes[rank][wholeHead+f*(c1-c0):])
		}
	}
	return nil
}

// exchange calls the collective, if there are other ranks.
func (g *SyncGroup) exchange(recv, send [][]float64) error {
	if g.size == 1 {
		return nil
	}
	err := g.collective.Exchange(recv, send)
	if err != nil && !errors.Is(err, ErrRanks) && !errors.Is(err, ErrExchange) {
		err = &argError{ErrExchange, err.Error()}
	}
	return err
}

// merge merges the parts of this rank's share into the whole that is sent to all, or
// sets its verdict if the ranks disagree.
func (e *exchange) merge(failed error) {
	g := e.group
	whole := e.wholes[g.rank]
	whole[headVerdict] = float64(e.disagreeing())
	total := 0.0
	for _, part := range e.parts {
		total += part[headCount]
	}
	whole[headTotal] = total
	if whole[headVerdict] == 0 && (failed != nil || !(total <= maxTotal)) {
		whole[headVerdict] = float64(1 + g.size)
	}
	if whole[headVerdict] != 0 {
		return
	}
	c0, c1 := e.share(g.rank)
	n := c1 - c0
	field := func(v []float64, head, f int) []float64 { return v[head+f*n:][:n:n] }
	switch e.kind {
	case kindForward:
		for rank, part := range e.parts {
			e.moments[rank] = Moments{Count: int(part[headCount]), Mean: field(part, partHead, 0), M2: field(part, partHead, 1)}
		}
		dst := Moments{Mean: field(whole, wholeHead, 0), M2: field(whole, wholeHead, 1)}
		failed = MergeMoments(&dst, e.moments)
	case kindBackward:
		for rank, part := range e.parts {
			e.sums[rank] = GradSums{Count: int(part[headCount]), G: field(part, partHead, 0), GD: field(part, partHead, 1)}
		}
		dst := GradSums{G: field(whole, wholeHead, 0), GD: field(whole, wholeHead, 1)}
		failed = MergeGradSums(&dst, e.sums)
	default:
		sum := field(whole, wholeHead, 0)
		copy(sum, field(e.parts[0], partHead, 0))
		for _, part := range e.parts[1:] {
			for i, v := range field(part, partHead, 0) {
				sum[i] += v
			}
		}
	}
	if failed != nil {
		whole[headVerdict] = float64(1 + g.size)
	}
}

// maxTotal is the largest number of values per channel of a batch over all ranks:
// float64 and int hold every integer up to it.
const maxTotal = min(1<<53, float64(math.MaxInt))

// disagreeing returns 1 + the first rank that has refused its arguments or calls
// another operation than rank 0, and 0 if there is none.
func (e *exchange) disagreeing() int {
	for rank, part := range e.parts {
		if part[headKind] == float64(kindRefused) {
			return 1 + rank
		}
	}
	for rank, part := range e.parts {
		for i := range headCount {
			if part[i] != e.parts[0][i] {
				return 1 + rank
			}
		}
	}
	return 0
}

// verdict returns the error of an exchange over which the ranks disagree.
func (e *exchange) verdict() error {
	for rank := range e.owners {
		v := e.wholes[rank][headVerdict]
		if v == 0 {
			continue
		}
		differs := int(v) - 1
		switch {
		case differs < 0 || differs > e.group.size || v != math.Trunc(v):
			return fail(ErrRanks, "rank %d: what rank %d sends is no result of this operation", e.group.rank, rank)
		case differs == e.group.size:
			return fail(ErrRanks, "rank %d: rank %d can't merge the parts of all ranks", e.group.rank, rank)
		case e.parts[differs] == nil:
			return fail(ErrRanks, "rank %d: rank %d calls something else than rank 0, or refuses its arguments", e.group.rank, differs)
		case e.parts[differs][headKind] == float64(kindRefused):
			return fail(ErrRanks, "rank %d: rank %d %s", e.group.rank, differs, describe(e.parts[differs]))
		}
		return fail(ErrRanks, "rank %d: rank %d %s, rank 0 %s", e.group.rank, differs, describe(e.parts[differs]), describe(e.parts[0]))
	}
	for rank := range e.owners {
		if a, b := e.wholes[rank][headTotal], e.wholes[0][headTotal]; a != b {
			return fail(ErrRanks, "rank %d: rank %d counts %g values per channel, rank 0 counts %g", e.group.rank, rank, a, b)
		}
	}
	return nil
}

// describe puts the head of a part into words.
func describe(part []float64) string {
	kind, call, channels := exchangeKind(part[headKind]), part[headCall], part[headChannels]
	if kind == kindSum {
		return fmt.Sprintf("%v %.0f elements (call %.0f)", kind, channels, call)
	}
	return fmt.Sprintf("%v plan %.0f with %.0f channels (call %.0f)", kind, part[headPlan], channels, call)
}
