import type { RunningProxy as DataPlane } from '../proxy/proxy.ts';
import { type Figure, figuresNamed } from './metrics.ts';

export function proxyFigures(proxy: Pick<DataPlane, 'status'>): Figure[] {
  const { current, total } = figuresNamed('holdfast_');
  return [
    current('clients', 'Clients connected', () => proxy.status().clients),
    total('clients_total', 'Clients accepted', () => proxy.status().clientsTotal),
    total('clients_refused_total', 'Clients refused at limits.clientsMax', () => proxy.status().clientsRefused),
    total('requests_total', 'Requests of clients', () => proxy.status().requests),
    total('exchanges_total', 'Requests that interceptors looked into', () => proxy.status().exchanges),
    total('protocol_errors_total', 'Clients closed for malformed requests', () => proxy.status().protocolErrors),
    total('overflows_total', 'Clients closed at a buffer limit', () => proxy.status().overflows),
    total('faults_total', 'Clients closed for a mistake of Holdfast itself', () => proxy.status().faults),
    total('unserved_total', 'Clients closed because the KV store did not answer', () => proxy.status().unserved),
    current('lanes', 'Connections to the KV store', () => proxy.status().lanes),
    total(
      'lanes_retired_total',
      'Least recently used connections to the KV store closed at limits.sharedLanesMax',
      () => proxy.status().lanesRetired,
    ),
    current('own_lanes', 'Connections to the KV store that clients have to themselves', () => proxy.status().ownLanes),
    current('tenant_own_lanes_most', 'The same, of the identity with the most', () => proxy.status().tenantLanesMost),
    total(
      'own_lanes_refused_total',
      'Requests refused at limits.ownLanesMax and limits.tenantLanesMax',
      () => proxy.status().ownLanesRefused,
    ),
    current(
      'tenant_transaction_bytes_most',
      'Bytes queued in transactions, of the identity with the most',
      () => proxy.status().tenantTransactionBytesMost,
    ),
    total(
      'transactions_refused_total',
      'Commands refused at limits.transactionBytesMax and limits.tenantTransactionBytesMax',
      () => proxy.status().transactionsRefused,
    ),
    current('kv_reachable', '1 while the KV store can be reached', () => (proxy.status().upstreamReachable ? 1 : 0)),
    total('kv_connects_total', 'Connections made to the KV store', () => proxy.status().upstreamConnects),
    total('kv_losses_total', 'Connections to the KV store that broke', () => proxy.status().upstreamLosses),
  ];
}
