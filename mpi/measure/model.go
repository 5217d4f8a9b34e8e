package main

import (
	"container/heap"
	"fmt"
	"io"
	"math"
)

// model gives the time of messages. A rank sends one message at a time, and receives one
// at a time; each takes alpha + beta*bytes on the side of the sender and on that of the
// receiver.
type model struct {
	far, near float64 // alpha between nodes, and within one; seconds
	beta      float64 // seconds per byte
	node      int     // ranks of a node
	most      int     // largest number of ranks that is printed
}

// channels of the 53 batch norms of ResNet-50.
func channels() (list []int) {
	list = append(list, 64)
	for stage, blocks := range []int{3, 4, 6, 3} {
		width := 64 << stage
		for block := range blocks {
			list = append(list, width, width, 4*width)
			if block == 0 { // that of the shortcut
				list = append(list, 4*width)
			}
		}
	}
	return list
}

// Elements of the vectors, as the package sends them: see batchnorm's collective.go.
const (
	partHead  = 5
	wholeHead = 2
	fields    = 2
	double    = 8 // bytes
)

// share returns the largest number of channels that an owner has.
func share(channels, owners int) int { return (channels + owners - 1) / owners }

// message goes from one rank to another.
type message struct {
	to    int
	bytes float64
}

// phase returns the messages that a rank sends, in order. A rank begins the next phase when
// it has sent its own messages and received all that are for it.
type phase func(rank int) []message

// protocol is a way for the ranks to exchange the values of a layer.
type protocol struct {
	name   string
	phases func(m *model, ranks, channels int) []phase
}

// ring calls f for the other ranks from first to first+n-1, beginning behind the rank
// itself. All ranks do so, and at any time each receives from one other.
func ring(rank, first, n int, f func(other int)) {
	for k := 1; k < n; k++ {
		f(first + (rank-first+k)%n)
	}
}

// protocols are compared. Only the last one changes the bits.
var protocols = []protocol{
	// The package's protocol: parts go to their owners, and wholes to all.
	{"direct", func(_ *model, ranks, channels int) []phase {
		owners := min(ranks, channels)
		c := share(channels, owners)
		return []phase{
			func(rank int) (list []message) {
				ring(rank, 0, ranks, func(other int) {
					if other < owners {
						list = append(list, message{other, double * float64(partHead+fields*c)})
					}
				})
				return list
			},
			func(rank int) (list []message) {
				if rank < owners {
					ring(rank, 0, ranks, func(other int) { list = append(list, message{other, double * float64(wholeHead+fields*c)}) })
				}
				return list
			},
		}
	}},
	// Every rank gets all parts, by recursive doubling, and merges them itself. The number of
	// ranks is a power of two.
	{"all-gather", func(_ *model, ranks, channels int) (list []phase) {
		for d := 1; d < ranks; d *= 2 {
			list = append(list, func(rank int) []message {
				return []message{{rank ^ d, double * float64(d*(partHead+fields*channels))}}
			})
		}
		return list
	}},
	// Rank k of a node gathers the parts of the node's ranks that are for the owners k of all
	// nodes, and does not merge them. It sends one message to each node, and the wholes come
	// back the same way. Parts are merged in the order of the ranks.
	{"two levels", func(m *model, ranks, channels int) []phase {
		node := min(m.node, ranks)
		nodes := ranks / node
		owners := min(ranks, channels)
		c := float64(share(channels, owners))
		ownersOf := float64(owners) / float64(ranks) // owners among the ranks
		part, whole := double*(partHead+fields*c), double*(wholeHead+fields*c)
		within := func(bytes float64) phase {
			return func(rank int) (list []message) {
				ring(rank, rank/node*node, node, func(other int) { list = append(list, message{other, bytes}) })
				return list
			}
		}
		across := func(bytes float64) phase {
			return func(rank int) (list []message) {
				for k := 1; k < nodes; k++ {
					list = append(list, message{(rank + k*node) % ranks, bytes})
				}
				return list
			}
		}
		return []phase{
			within(part * ownersOf * float64(nodes)), // this rank's parts for the owners k of all nodes
			across(part * ownersOf * float64(node)),  // the parts of a node's ranks for one owner
			across(whole * ownersOf),                 // to rank k of each node
			within(whole * ownersOf * float64(nodes)),
		}
	}},
	// The parts go to their owners in log2(ranks) steps. In each step a rank sends one message
	// to one rank, which sends the parts for others on (Bruck et al. 1997). The wholes come
	// back by recursive doubling. Only owners merge, in the order of the ranks.
	{"forwarded", func(_ *model, ranks, channels int) (list []phase) {
		owners := min(ranks, channels)
		c := float64(share(channels, owners))
		ownersOf := float64(owners) / float64(ranks)
		part, whole := double*(partHead+fields*c), double*(wholeHead+fields*c)
		for d := 1; d < ranks; d *= 2 {
			bytes := part * ownersOf * float64(ranks/2)
			list = append(list, func(rank int) []message { return []message{{(rank + d) % ranks, bytes}} })
		}
		for d := 1; d < ranks; d *= 2 {
			bytes := whole * ownersOf * float64(d)
			list = append(list, func(rank int) []message { return []message{{rank ^ d, bytes}} })
		}
		return list
	}},
	// Sums over pairs of ranks, pairs of pairs and so on, of half as many channels every
	// time, and back. The order of merging is a tree, which depends on the number of ranks.
	{"tree", func(_ *model, ranks, channels int) (list []phase) {
		c := float64(channels)
		for d := 1; d < ranks; d *= 2 {
			c /= 2
			bytes := double * (partHead + fields*math.Ceil(c))
			list = append(list, func(rank int) []message { return []message{{rank ^ d, bytes}} })
		}
		for d := ranks / 2; d >= 1; d /= 2 {
			bytes := double * (wholeHead + fields*math.Ceil(c))
			list = append(list, func(rank int) []message { return []message{{rank ^ d, bytes}} })
			c *= 2
		}
		return list
	}},
}

// cost has the most that a rank sends, and the time at which the last rank is done.
type cost struct {
	messages int
	bytes    float64
	seconds  float64
}

// cost simulates an exchange, message by message.
func (m *model) cost(w protocol, ranks, channels int) (c cost) {
	ready := make([]float64, ranks) // when a rank begins its phase
	sent := make([]int, ranks)
	bytes := make([]float64, ranks)
	for _, p := range w.phases(m, ranks, channels) {
		ready = m.phase(p, ready, func(rank int, b float64) {
			sent[rank]++
			bytes[rank] += b
		})
	}
	for rank := range ranks {
		c.messages = max(c.messages, sent[rank])
		c.bytes = max(c.bytes, bytes[rank])
		c.seconds = max(c.seconds, ready[rank])
	}
	return c
}

// phase simulates a phase, and returns when each rank is done with it. Messages are taken
// in the order of the times at which they can begin.
func (m *model) phase(p phase, ready []float64, count func(rank int, bytes float64)) []float64 {
	n := len(ready)
	queue := make(events, 0, n)
	lists := make([][]message, n)
	port := make([]float64, n) // when the rank is free to receive
	done := make([]float64, n)
	for rank := range n {
		lists[rank] = p(rank)
		done[rank] = ready[rank]
		port[rank] = ready[rank]
		if len(lists[rank]) > 0 {
			queue = append(queue, event{ready[rank], rank})
		}
	}
	heap.Init(&queue)
	for len(queue) > 0 {
		e := queue[0]
		next := lists[e.rank][0]
		lists[e.rank] = lists[e.rank][1:]
		count(e.rank, next.bytes)
		alpha := m.far
		if e.rank/m.node == next.to/m.node {
			alpha = m.near
		}
		takes := alpha + m.beta*next.bytes
		sent := e.at + takes
		received := max(e.at, port[next.to]) + takes
		port[next.to] = received
		done[e.rank] = max(done[e.rank], sent)
		done[next.to] = max(done[next.to], received)
		if len(lists[e.rank]) > 0 {
			queue[0].at = sent
			heap.Fix(&queue, 0)
		} else {
			heap.Pop(&queue)
		}
	}
	return done
}

// event is a rank that is free to send its next message.
type event struct {
	at   float64
	rank int
}

type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].rank < e[j].rank
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	old := *e
	last := old[len(old)-1]
	*e = old[:len(old)-1]
	return last
}

// print prints the tables of the model.
func (m *model) print(out io.Writer) {
	var ranks []int
	for r := 2; r <= m.most; r *= 2 {
		ranks = append(ranks, r)
	}
	fmt.Fprintf(out, "alpha %.3g us between nodes, %.3g us within a node of %d ranks; %.3g GB/s\n", m.far*1e6, m.near*1e6, m.node, 1e-9/m.beta)
	for _, c := range []int{64, 512, 2048} {
		fmt.Fprintf(out, "\n%d channels, one pass: messages and KB that a rank sends, and microseconds\n%6s", c, "ranks")
		for _, w := range protocols {
			fmt.Fprintf(out, " %26s", w.name)
		}
		fmt.Fprintln(out)
		for _, r := range ranks {
			fmt.Fprintf(out, "%6d", r)
			for _, w := range protocols {
				k := m.cost(w, r, c)
				fmt.Fprintf(out, " %5d %9.1f %10.0f", k.messages, k.bytes/1e3, k.seconds*1e6)
			}
			fmt.Fprintln(out)
		}
	}
	list := channels()
	fmt.Fprintf(out, "\nResNet-50, one step: %d layers forward and backward, %d channels: messages, MB and ms\n%6s", len(list), sum(list), "ranks")
	for _, w := range protocols {
		fmt.Fprintf(out, " %26s", w.name)
	}
	fmt.Fprintln(out)
	for _, r := range ranks {
		fmt.Fprintf(out, "%6d", r)
		for _, w := range protocols {
			var total cost
			known := map[int]cost{}
			for _, c := range list {
				k, ok := known[c]
				if !ok {
					k = m.cost(w, r, c)
					known[c] = k
				}
				total.messages += 2 * k.messages
				total.bytes += 2 * k.bytes
				total.seconds += 2 * k.seconds
			}
			fmt.Fprintf(out, " %6d %8.1f %10.2f", total.messages, total.bytes/1e6, total.seconds*1e3)
		}
		fmt.Fprintln(out)
	}
}

func sum(list []int) (n int) {
	for _, v := range list {
		n += v
	}
	return n
}
